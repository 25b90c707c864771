"""Linear layers: rows times stored weight matrices, read from the memory map where they lie.

Many rows (reading a prompt) go through panels.py, few rows (decoding) through few_rows.py. Both sum in an order that
depends neither on the number of threads nor on how many rows there are, so sequences that decode together get the
numbers they get alone.

Two precisions: `f32` keeps the inputs in float32, `bf16` rounds them to bf16; sums are float32 in both.
"""

from collections.abc import Sequence

import numpy as np

from pg2ref.kernels.elementwise import gated_gelu
from pg2ref.kernels.few_rows import FEW_ROWS, linear_few
from pg2ref.kernels.panels import cut_in_blocks, gated_linear_rows, linear_rows
from pg2ref.kernels.simd.dots import TURN
from pg2ref.kernels.stored import Array, rounded, widened

Bias = Array | None


def linear(x_TD: Array, weight_OD: Array, bias_O: Bias = None) -> Array:
    """Multiply float32 rows by a stored weight matrix, `x @ weight.T + bias`; the same as model/ops.py, linear.

    bf16 and float32 weights are read where they lie; others are converted first, a copy.
    """
    return multiply(x_TD, [weight_OD], [bias_O], is_bf16=False)[0]


def linear_bf16(x_TD: Array, weight_OD: Array, bias_O: Bias = None) -> Array:
    """The same with the rows rounded to bf16, and the weights too where they are stored with more."""
    return multiply(x_TD, [weight_OD], [bias_O], is_bf16=True)[0]


def multiply(x_TD: Array, weights: Sequence[Array], biases: Sequence[Bias], *, is_bf16: bool) -> list[Array]:
    """The same rows times each of some matrices of one stored type."""
    x_TD, weights = prepared(x_TD, weights, is_bf16=is_bf16)
    if goes_by_few_rows(x_TD, weights):
        outs = linear_few(x_TD, weights, is_bf16=is_bf16)
        return [out if bias is None else out + widened(bias) for out, bias in zip(outs, biases, strict=True)]
    blocks_BTW, words = cut_in_blocks(x_TD, pairs=is_bf16)
    return [
        linear_rows(blocks_BTW, words, weight_OD, bias_O, pairs=is_bf16)
        for weight_OD, bias_O in zip(weights, biases, strict=True)
    ]


def multiply_gated(x_TD: Array, gate_FD: Array, up_FD: Array, *, is_bf16: bool) -> Array:
    """GeGLU, gelu(x @ gate.T) * (x @ up.T); see model/ops.py, gated_linear."""
    if gate_FD.dtype != up_FD.dtype:  # the kernel for both reads one type
        gate_TF, up_TF = (multiply(x_TD, [weight], [None], is_bf16=is_bf16)[0] for weight in (gate_FD, up_FD))
        return gated_gelu(gate_TF, up_TF)
    x_TD, weights = prepared(x_TD, [gate_FD, up_FD], is_bf16=is_bf16)
    if goes_by_few_rows(x_TD, weights):
        return gated_gelu(*linear_few(x_TD, weights, is_bf16=is_bf16))
    return gated_linear_rows(*cut_in_blocks(x_TD, pairs=is_bf16), *weights, pairs=is_bf16)


def goes_by_few_rows(x_TD: Array, weights: Sequence[Array]) -> bool:
    """Whether the kernel for few rows takes these."""
    T, D = x_TD.shape
    return T <= FEW_ROWS and D % TURN == 0 and all(weight_OD.dtype == np.uint16 for weight_OD in weights)


def prepared(x_TD: Array, weights: Sequence[Array], *, is_bf16: bool) -> tuple[Array, list[Array]]:
    """Rows and weights as the kernels read them: bf16 weights as they are, others rounded to bf16 or float32."""
    x_TD = np.ascontiguousarray(x_TD, np.float32)
    stored = []
    for weight_OD in weights:
        if weight_OD.dtype != np.uint16:
            weight_OD = rounded(weight_OD) if is_bf16 else weight_OD.astype(np.float32, copy=False)
        stored.append(np.ascontiguousarray(weight_OD))
    if is_bf16 and x_TD.shape[1] % 2:  # two numbers a word
        x_TD, *stored = (np.pad(array, ((0, 0), (0, 1))) for array in (x_TD, *stored))
    return x_TD, stored
