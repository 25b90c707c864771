"""Linear layers: rows times a stored weight matrix, read from the memory map where it lies.

Many rows (reading a prompt): a panel of outputs is transposed, small enough for the nearest caches, and the register
tile of simd/tile.py runs over all rows of x with it. Few rows (decoding): every stored row is read once, in order, and
multiplied with all inputs while it is in registers. Both sum in an order that depends neither on the number of threads
nor on how many rows there are, so sequences that decode together get the numbers they get alone.

Two precisions: `linear` keeps the inputs in float32, `linear_bf16` rounds them to bf16; sums are float32 in both.
"""

from typing import Any, TypeAlias

import numpy as np
from numba import prange

from pg2ref.kernels.compiling import inlined, kernel, num_threads, run
from pg2ref.kernels.simd.cpu import cpu
from pg2ref.kernels.simd.dots import TURN, make_dots
from pg2ref.kernels.simd.machine import flush_denormals, load_half, load_word, store_word, take
from pg2ref.kernels.simd.products import BF16_PAIRS, FLOAT32
from pg2ref.kernels.simd.tile import VECTORS, make_tile
from pg2ref.kernels.simd.transpose import make_transpose

Array: TypeAlias = np.ndarray[Any, Any]

LANES = cpu().lanes
PANEL = VECTORS * LANES  # outputs in a panel
BLOCK = 576  # words of inputs in a panel: its 72 KB (AVX-512) and the rows they meet lie in the second cache
TILE_ROWS = 8 if cpu().registers == 32 else 6
FEW_ROWS = 16
SHARE = 32  # stored rows that a thread takes at a time
FLOATS, WIDENED, PAIRS = 0, 1, 2  # what a word of a panel is: a stored float32, a widened bf16, two bf16

tile_all, tile_two, tile_one = (make_tile(cpu(), FLOAT32, rows) for rows in (TILE_ROWS, 2, 1))
pairs_all, pairs_two, pairs_one = (make_tile(cpu(), BF16_PAIRS, rows) for rows in (TILE_ROWS, 2, 1))
dots_three, dots_two, dots_one = (make_dots(cpu(), rows, bf16_inputs=False) for rows in (3, 2, 1))
pair_dots_three, pair_dots_two, pair_dots_one = (make_dots(cpu(), rows, bf16_inputs=True) for rows in (3, 2, 1))
transpose_bf16, transpose_words = make_transpose(cpu(), widened=True), make_transpose(cpu(), widened=False)


@inlined
def multiply(x, x_stride, num_rows, panel, panel_stride, steps, out, out_stride, fresh, pairs):  # type: ignore[no-untyped-def]
    """One panel of outputs of all rows, in tiles of as many rows as the registers hold. Strides are in bytes.

    `pairs`: words of two bf16.
    """
    t = 0
    while t + TILE_ROWS <= num_rows:
        rows, place = x + t * x_stride, out + t * out_stride
        if pairs:
            pairs_all(rows, x_stride, panel, panel_stride, steps, place, out_stride, fresh)
        else:
            tile_all(rows, x_stride, panel, panel_stride, steps, place, out_stride, fresh)
        t += TILE_ROWS
    while t + 2 <= num_rows:
        rows, place = x + t * x_stride, out + t * out_stride
        if pairs:
            pairs_two(rows, x_stride, panel, panel_stride, steps, place, out_stride, fresh)
        else:
            tile_two(rows, x_stride, panel, panel_stride, steps, place, out_stride, fresh)
        t += 2
    if t < num_rows:
        rows, place = x + t * x_stride, out + t * out_stride
        if pairs:
            pairs_one(rows, x_stride, panel, panel_stride, steps, place, out_stride, fresh)
        else:
            tile_one(rows, x_stride, panel, panel_stride, steps, place, out_stride, fresh)


@inlined
def bf16_bits(value):  # type: ignore[no-untyped-def]
    """A float32 rounded to the nearest bf16, ties to even; the upper half of its bits. NaN stays one."""
    bits = np.float32(value).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(quiet if is_nan else rounded)


@kernel
def float_blocks(x_TD, blocks_BTW):  # type: ignore[no-untyped-def]
    """Cut x into blocks of BLOCK words a row, so that no two rows of a tile meet in one cache set."""
    T, D = x_TD.shape
    for t in prange(T):
        for block in range(blocks_BTW.shape[0]):
            numbers = x_TD[t, block * BLOCK : min(D, (block + 1) * BLOCK)]
            words = blocks_BTW[block, t]
            for k in range(numbers.size):
                words[k] = numbers[k]


@kernel
def pair_blocks(x_TD, blocks_BTW):  # type: ignore[no-untyped-def]
    """The same, rounded to bf16; `blocks_BTW` counts numbers, two a word."""
    T, D = x_TD.shape
    for t in prange(T):
        for block in range(blocks_BTW.shape[0]):
            numbers = x_TD[t, block * 2 * BLOCK : min(D, (block + 1) * 2 * BLOCK)]
            halves = blocks_BTW[block, t]
            for k in range(numbers.size):
                halves[k] = bf16_bits(numbers[k])


@inlined
def pack(w, w_stride, kind, outputs, panel, steps):  # type: ignore[no-untyped-def]
    """Transpose `outputs` rows and `steps` words of weights into a panel: squares in registers, edges one by one."""
    size = 2 if kind == WIDENED else 4
    square_outputs, square_steps = outputs // LANES * LANES, steps // LANES * LANES
    for o in range(0, square_outputs, LANES):
        for k in range(0, square_steps, LANES):
            square, place = w + o * w_stride + k * size, panel + (k * PANEL + o) * 4
            if kind == WIDENED:
                transpose_bf16(square, w_stride, place, PANEL * 4)
            else:
                transpose_words(square, w_stride, place, PANEL * 4)
    for o in range(outputs):
        for k in range(square_steps if o < square_outputs else 0, steps):
            place = w + o * w_stride + k * size
            word = np.uint32(load_half(place)) << np.uint32(16) if kind == WIDENED else load_word(place)
            store_word(np.uint32(word), panel + (k * PANEL + o) * 4)


@kernel
def many_rows(blocks_BTW, words, w, w_stride, kind, out_TO, fresh, threads):  # type: ignore[no-untyped-def]
    """out_TO (+)= x_TD @ weights.T; `blocks_BTW` holds x in blocks, `words` of them a row; `w` is an address.

    Threads take one panel of outputs after the other, so that a slow one takes fewer.
    """
    T, O = out_TO.shape  # noqa: E741 - the dimension key
    panels = (O + PANEL - 1) // PANEL
    counter = np.zeros(1, np.int64)
    x, x_stride, size = blocks_BTW.ctypes.data, np.int64(BLOCK * 4), 2 if kind == WIDENED else 4
    for _thread in prange(threads):
        flush_denormals(np.int64(kind == PAIRS))
        panel = np.zeros((BLOCK, PANEL), np.float32)
        edge_TP = np.zeros((T, PANEL), np.float32)
        index = take(counter.ctypes.data)
        while index < panels:
            o = index * PANEL
            outputs = min(PANEL, O - o)
            if outputs < PANEL and not fresh:
                edge_TP[:, :outputs] = out_TO[:, o:]
            # a tile writes whole panels; the last one may not be whole
            place = out_TO.ctypes.data + o * 4 if outputs == PANEL else edge_TP.ctypes.data
            stride = np.int64(O * 4 if outputs == PANEL else PANEL * 4)
            for start in range(0, words, BLOCK):
                steps = min(BLOCK, words - start)
                pack(w + o * w_stride + start * size, w_stride, kind, outputs, panel.ctypes.data, steps)
                first, block = np.int64(fresh and start == 0), x + start * T * 4
                pairs = kind == PAIRS
                multiply(block, x_stride, T, panel.ctypes.data, PANEL * 4, steps, place, stride, first, pairs)
            if outputs < PANEL:
                out_TO[:, o:] = edge_TP[:, :outputs]
            index = take(counter.ctypes.data)
        flush_denormals(np.int64(0))
        panel[0, 0] = 0  # an array is freed after its last use, and an address is none: here it still lives
    counter[0] = blocks_BTW[0, 0, 0]


@kernel
def few_rows(x, T, D, w, is_bf16, out_OT, threads):  # type: ignore[no-untyped-def]
    """The same for bf16 weights and few rows; `x` is the address of bf16 rows, or of float32 ones, split in halves."""
    O = out_OT.shape[0]  # noqa: E741
    turns, stride, odd = np.int64(D // TURN), np.int64(D * (2 if is_bf16 else 4)), np.int64(D * 2)
    counter = np.zeros(1, np.int64)
    for _thread in prange(threads):
        flush_denormals(np.int64(is_bf16))
        start = take(counter.ctypes.data) * SHARE
        while start < O:
            for o in range(start, min(O, start + SHARE)):
                row, out = w + o * D * 2, out_OT.ctypes.data + o * T * 4
                t = 0
                while t + 3 <= T:
                    if is_bf16:
                        pair_dots_three(row, turns, x + t * stride, stride, odd, out + t * 4, 4)
                    else:
                        dots_three(row, turns, x + t * stride, stride, odd, out + t * 4, 4)
                    t += 3
                if t + 2 == T:
                    if is_bf16:
                        pair_dots_two(row, turns, x + t * stride, stride, odd, out + t * 4, 4)
                    else:
                        dots_two(row, turns, x + t * stride, stride, odd, out + t * 4, 4)
                elif t + 1 == T:
                    if is_bf16:
                        pair_dots_one(row, turns, x + t * stride, stride, odd, out + t * 4, 4)
                    else:
                        dots_one(row, turns, x + t * stride, stride, odd, out + t * 4, 4)
            start = take(counter.ctypes.data) * SHARE
        flush_denormals(np.int64(0))
    counter[0] = 0


def linear(x_TD: Array, weight_OD: Array, bias_O: Array | None = None) -> Array:
    """Multiply float32 rows by a stored weight matrix, `x @ weight.T + bias`; the same as model/ops.py, linear.

    bf16 and float32 weights are read where they lie; others are converted first, a copy.
    """
    return multiply_matrix(x_TD, weight_OD, bias_O, bf16_inputs=False)


def linear_bf16(x_TD: Array, weight_OD: Array, bias_O: Array | None = None) -> Array:
    """The same with the rows rounded to bf16, and the weights too where they are stored with more."""
    return multiply_matrix(x_TD, weight_OD, bias_O, bf16_inputs=True)


def multiply_matrix(x_TD: Array, weight_OD: Array, bias_O: Array | None, *, bf16_inputs: bool) -> Array:
    """Choose the kernel: by the number of rows and by what a word of weights is."""
    x_TD = np.ascontiguousarray(x_TD, np.float32)
    if weight_OD.dtype != np.uint16 and (bf16_inputs or weight_OD.dtype != np.float32):
        weight_OD = rounded(weight_OD) if bf16_inputs else weight_OD.astype(np.float32)
    if bf16_inputs and x_TD.shape[1] % 2:  # two numbers a word
        x_TD, weight_OD = (np.pad(array, ((0, 0), (0, 1))) for array in (x_TD, weight_OD))
    weight_OD = np.ascontiguousarray(weight_OD)
    (T, D), O = x_TD.shape, weight_OD.shape[0]  # noqa: E741
    is_bf16 = weight_OD.dtype == np.uint16
    if T <= FEW_ROWS and is_bf16 and D % TURN == 0:
        rows = rounded(x_TD) if bf16_inputs else np.ascontiguousarray(x_TD.reshape(T, D // 2, 2).transpose(0, 2, 1))
        out_OT = np.empty((O, T), np.float32)
        few_rows(rows.ctypes.data, T, D, weight_OD.ctypes.data, bf16_inputs, out_OT, num_threads())
        rows[:1] = 0  # the kernel had its address alone
        out_TO = np.ascontiguousarray(out_OT.T)
        return out_TO if bias_O is None else out_TO + widened(bias_O)
    words, kind = (D // 2, PAIRS) if bf16_inputs else (D, WIDENED if is_bf16 else FLOATS)
    blocks_BTW = np.zeros((-(-words // BLOCK), T, BLOCK), np.uint32)
    if bf16_inputs:
        pair_blocks(x_TD, blocks_BTW.view(np.uint16))
    else:
        float_blocks(x_TD, blocks_BTW.view(np.float32))
    out_TO = np.empty((T, O), np.float32)
    if bias_O is not None:
        out_TO[:] = widened(bias_O)
    w_stride = D * weight_OD.dtype.itemsize
    many_rows(blocks_BTW, words, weight_OD.ctypes.data, w_stride, kind, out_TO, bias_O is None, num_threads())
    return out_TO


@kernel
def round_rows(x_TD, out_TD):  # type: ignore[no-untyped-def]
    """Each number's bf16 bits."""
    for t in prange(x_TD.shape[0]):
        numbers, halves = x_TD[t], out_TD[t]
        for d in range(numbers.size):
            halves[d] = bf16_bits(numbers[d])


def rounded(values: Array) -> Array:
    """A matrix as bf16 bits."""
    out = np.empty(values.shape, np.uint16)
    run(round_rows, values.size, np.ascontiguousarray(values, np.float32), out)
    return out


def widened(stored: Array) -> Array:
    """A small stored array as float32."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)
