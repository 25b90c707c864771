"""Linear layers: rows times stored weight matrices, read from the memory map where they lie.

Many rows (reading a prompt) go through panels.py, few rows (decoding) through few_rows.py. Both sum in an order that
depends neither on the number of threads nor on how many rows there are, so sequences that decode together get the
numbers they get alone.

Two precisions: `f32` keeps the inputs in float32, `bf16` rounds them to bf16; sums are float32 in both.

Weights that no kernel reads as they are stored (float16; in precision bf16 float32 too, and an odd number of inputs;
rows with gaps between them) are converted at each call, some outputs at a time: all at once may be gigabytes.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pg2ref.kernels.elementwise import gated_gelu
from pg2ref.kernels.few_rows import FEW_ROWS, linear_few
from pg2ref.kernels.matrices import check_widths
from pg2ref.kernels.panels import cut_in_blocks, gated_linear_rows, kind_of, linear_rows
from pg2ref.kernels.simd.dots import TURN
from pg2ref.kernels.stored import Array, rounded, widened

Bias = Array | None
CONVERTED_AT_ONCE = 1 << 22  # weights, 16 MB in float32


def linear(x_TD: Array, weight_OD: Array, bias_O: Bias = None) -> Array:
    """Multiply float32 rows by a stored weight matrix, `x @ weight.T + bias`; the same as model/ops.py, linear."""
    return linear_each(x_TD, [weight_OD], [bias_O], is_bf16=False)[0]


def linear_bf16(x_TD: Array, weight_OD: Array, bias_O: Bias = None) -> Array:
    """The same with the rows rounded to bf16, and the weights too where they are stored with more."""
    return linear_each(x_TD, [weight_OD], [bias_O], is_bf16=True)[0]


def linear_each(x_TD: Array, weights: Sequence[Array], biases: Sequence[Bias], *, is_bf16: bool) -> list[Array]:
    """The same rows times each of some matrices of one stored type.

    Raises ValueError where the rows are not as long as the matrices'.
    """
    check_widths(x_TD, weights)
    if not all(is_readable(weight_OD, is_bf16=is_bf16) for weight_OD in weights):
        return [
            converted_linear(x_TD, weight_OD, bias_O, is_bf16=is_bf16)
            for weight_OD, bias_O in zip(weights, biases, strict=True)
        ]
    x_TD = np.ascontiguousarray(x_TD, np.float32)
    if goes_by_few_rows(x_TD, weights):
        outs = linear_few(x_TD, list(weights), is_bf16=is_bf16)
        return [out if bias is None else out + widened(bias) for out, bias in zip(outs, biases, strict=True)]
    blocks_BTW, words = cut_in_blocks(x_TD, kind_of(weights[0], is_bf16=is_bf16))
    return [
        linear_rows(blocks_BTW, words, weight_OD, bias_O, kind_of(weight_OD, is_bf16=is_bf16))
        for weight_OD, bias_O in zip(weights, biases, strict=True)
    ]


def converted_linear(x_TD: Array, weight_OD: Array, bias_O: Bias, *, is_bf16: bool) -> Array:
    """Some outputs after the others, each time with the weights that they need."""
    out_TO = np.empty((len(x_TD), len(weight_OD)), np.float32)
    rows_TD = with_even_inputs(x_TD) if is_bf16 else x_TD
    for outputs, piece_OD in converted_pieces(weight_OD, is_bf16=is_bf16):
        bias = None if bias_O is None else bias_O[outputs]
        out_TO[:, outputs] = linear_each(rows_TD, [piece_OD], [bias], is_bf16=is_bf16)[0]
    return out_TO


def gated_linear(x_TD: Array, gate_FD: Array, up_FD: Array, *, is_bf16: bool) -> Array:
    """GeGLU, gelu(x @ gate.T) * (x @ up.T); see model/ops.py, gated_linear. Raises as `linear_each`."""
    weights = [gate_FD, up_FD]
    check_widths(x_TD, weights)
    is_one_type = gate_FD.dtype == up_FD.dtype  # which the kernel for both needs
    if not (is_one_type and all(is_readable(weight_FD, is_bf16=is_bf16) for weight_FD in weights)):
        gate_TF, up_TF = (linear_each(x_TD, [weight_FD], [None], is_bf16=is_bf16)[0] for weight_FD in weights)
        return gated_gelu(gate_TF, up_TF)
    x_TD = np.ascontiguousarray(x_TD, np.float32)
    if goes_by_few_rows(x_TD, weights):
        return gated_gelu(*linear_few(x_TD, weights, is_bf16=is_bf16))
    kind = kind_of(gate_FD, is_bf16=is_bf16)
    return gated_linear_rows(*cut_in_blocks(x_TD, kind), *weights, kind)


def goes_by_few_rows(x_TD: Array, weights: Sequence[Array]) -> bool:
    """Whether the kernel for few rows takes these."""
    T, D = x_TD.shape
    return T <= FEW_ROWS and D % TURN == 0 and all(weight_OD.dtype == np.uint16 for weight_OD in weights)


def is_readable(weight_OD: Array, *, is_bf16: bool) -> bool:
    """Whether kernels read a matrix as it lies; in bf16 they read two numbers a word."""
    if not weight_OD.flags.c_contiguous:
        return False
    if is_bf16:
        return weight_OD.dtype == np.uint16 and weight_OD.shape[1] % 2 == 0
    return weight_OD.dtype in (np.uint16, np.float32)


def converted_pieces(weight_OD: Array, *, is_bf16: bool) -> Iterator[tuple[slice, Array]]:
    """Some outputs, and their weights as kernels read them."""
    outputs_at_once = max(1, CONVERTED_AT_ONCE // max(1, weight_OD.shape[1]))
    for start in range(0, len(weight_OD), outputs_at_once):
        outputs = slice(start, start + outputs_at_once)
        piece_OD = weight_OD[outputs]
        if is_bf16:
            piece_OD = with_even_inputs(piece_OD if piece_OD.dtype == np.uint16 else rounded(piece_OD))
        elif piece_OD.dtype != np.uint16:
            piece_OD = piece_OD.astype(np.float32, copy=False)
        yield outputs, np.ascontiguousarray(piece_OD)


def with_even_inputs(numbers_RD: Array) -> Array:
    """The rows, with a zero behind each where they are of odd length."""
    return np.pad(numbers_RD, ((0, 0), (0, 1))) if numbers_RD.shape[1] % 2 else numbers_RD
