"""Many rows times a stored matrix (reading a prompt), at the speed of the multipliers.

Some panels of outputs are transposed, small enough for the nearest caches, and the register tile of simd/tile.py runs
over all rows of x with them, while the weights of the next panels are fetched. Rows come from farther away, and more of
them than the second cache holds come from there for each panel anew: so a tile's rows meet all panels at once.
Every output is one chain of additions in the order of the inputs, whatever the number of threads and rows.
"""

import numpy as np
from numba import prange

from pg2ref.kernels.compiling import inlined, kernel, num_threads
from pg2ref.kernels.exponential import gelu_float32
from pg2ref.kernels.results import empty
from pg2ref.kernels.simd.cpu import cpu
from pg2ref.kernels.simd.machine import (
    CACHE_LINE,
    flush_denormals,
    load_half,
    load_word,
    prefetch,
    restore_control,
    store_word,
    take,
)
from pg2ref.kernels.simd.products import BF16_PAIRS, FLOAT32
from pg2ref.kernels.simd.tile import VECTORS, make_tile
from pg2ref.kernels.simd.transpose import make_transpose
from pg2ref.kernels.stored import Array, as_float32, bf16_bits, widened

LANES = cpu().lanes
PANEL = VECTORS * LANES  # outputs in a panel
BLOCK = 576  # words of inputs in a panel: its 72 KB (AVX-512) and the rows they meet lie in the second cache
TOGETHER = 128 // PANEL  # panels that rows meet at once
UNITS = 8  # shares of the work for each thread, at least
TILE_ROWS = 8 if cpu().registers == 32 else 6
# What a word of a panel is. Float32 inputs meet a stored float32 or a widened bf16. Those rounded to bf16 meet two bf16
# or, where no instruction multiplies pairs, widened ones, each second before its first: so the tile of float32 does
# what that of pairs does, in its order (simd/products.py), and takes no words apart. It needs a fused multiply-add.
FLOATS, WIDENED, SWAPPED, PAIRS = 0, 1, 2, 3
FROM_HALVES, ROUNDED = (WIDENED, SWAPPED), (SWAPPED, PAIRS)  # bf16 widened on the way; inputs rounded to bf16
BF16_KIND = SWAPPED if cpu().fused and not cpu().bf16_dot else PAIRS
PANEL_BYTES = BLOCK * PANEL * 4
NOTHING = np.int64(0)

tile_all, tile_four, tile_two, tile_one = (make_tile(cpu(), FLOAT32, rows) for rows in (TILE_ROWS, 4, 2, 1))
pairs_all, pairs_four, pairs_two, pairs_one = (make_tile(cpu(), BF16_PAIRS, rows) for rows in (TILE_ROWS, 4, 2, 1))
transpose_bf16, transpose_words = make_transpose(cpu(), widened=True), make_transpose(cpu(), widened=False)
transpose_swapped = make_transpose(cpu(), widened=True, swapped=True)


@inlined
def multiply_tile(tile_rows, rows, x_stride, panel, steps, begin, begin_stride, place, out_stride, pairs):  # type: ignore[no-untyped-def]
    """One panel of outputs of TILE_ROWS, 4, 2 or 1 rows."""
    panel_stride = np.int64(PANEL * 4)
    if pairs:
        if tile_rows == TILE_ROWS:
            pairs_all(rows, x_stride, panel, panel_stride, steps, begin, begin_stride, place, out_stride)
        elif tile_rows == 4:
            pairs_four(rows, x_stride, panel, panel_stride, steps, begin, begin_stride, place, out_stride)
        elif tile_rows == 2:
            pairs_two(rows, x_stride, panel, panel_stride, steps, begin, begin_stride, place, out_stride)
        else:
            pairs_one(rows, x_stride, panel, panel_stride, steps, begin, begin_stride, place, out_stride)
    elif tile_rows == TILE_ROWS:
        tile_all(rows, x_stride, panel, panel_stride, steps, begin, begin_stride, place, out_stride)
    elif tile_rows == 4:
        tile_four(rows, x_stride, panel, panel_stride, steps, begin, begin_stride, place, out_stride)
    elif tile_rows == 2:
        tile_two(rows, x_stride, panel, panel_stride, steps, begin, begin_stride, place, out_stride)
    else:
        tile_one(rows, x_stride, panel, panel_stride, steps, begin, begin_stride, place, out_stride)


@inlined
def fetch_lines(start, size):  # type: ignore[no-untyped-def]
    """Ask for `size` bytes."""
    for offset in range(0, size, CACHE_LINE):
        prefetch(start + offset)


@inlined
def multiply(
    x, x_stride, num_rows, panel, count, steps, begin, begin_stride, out, out_stride, pairs, next_w, w_stride, fetch
):  # type: ignore[no-untyped-def]
    """All rows times `count` panels, in tiles of as many rows as the registers hold. Strides are in bytes.

    `begin`: as in simd/tile.py. `pairs`: words of two bf16. Meanwhile the weights of the next panels at `next_w`, as
    many rows of `fetch` bytes, come closer, and so do the rows of the next tile with their sums. They lie in the third
    cache, and the processor foresees a row only after its first numbers: on AVX2 this saves 6 to 10 % of the time.
    """
    t, fetched = 0, 0
    while t < num_rows:
        left = num_rows - t
        tile_rows = TILE_ROWS if left >= TILE_ROWS else 4 if left >= 4 else 2 if left >= 2 else 1
        rows, ours, place = x + t * x_stride, begin + t * begin_stride, out + t * out_stride
        next_rows, next_sums = rows + tile_rows * x_stride, ours + tile_rows * begin_stride
        coming = min(tile_rows, left - tile_rows)
        for p in range(count):
            if fetched < count * PANEL:
                fetch_lines(next_w + fetched * w_stride, fetch)
                fetched += 1
            for r in range(p, coming, count):
                fetch_lines(next_rows + r * x_stride, steps * 4)
            for r in range(coming if begin_stride else 0):
                fetch_lines(next_sums + r * begin_stride + p * PANEL * 4, PANEL * 4)
            weights, right = panel + p * PANEL_BYTES, p * PANEL * 4
            multiply_tile(
                tile_rows, rows, x_stride, weights, steps, ours + right, begin_stride, place + right, out_stride, pairs
            )
        t += tile_rows


@inlined
def pack(w, w_stride, kind, outputs, panel, steps):  # type: ignore[no-untyped-def]
    """Transpose `outputs` rows and `steps` words of weights into a panel: squares in registers, edges one by one."""
    size = 2 if kind in FROM_HALVES else 4
    square_outputs, square_steps = outputs // LANES * LANES, steps // LANES * LANES
    for o in range(0, square_outputs, LANES):
        for k in range(0, square_steps, LANES):
            square, place = w + o * w_stride + k * size, panel + (k * PANEL + o) * 4
            if kind == WIDENED:
                transpose_bf16(square, w_stride, place, PANEL * 4)
            elif kind == SWAPPED:
                transpose_swapped(square, w_stride, place, PANEL * 4)
            else:
                transpose_words(square, w_stride, place, PANEL * 4)
    for o in range(outputs):
        for k in range(square_steps if o < square_outputs else 0, steps):
            place = w + o * w_stride + k * size
            word = np.uint32(load_half(place)) << np.uint32(16) if size == 2 else load_word(place)
            step = k ^ 1 if kind == SWAPPED else k
            store_word(np.uint32(word), panel + (step * PANEL + o) * 4)


@inlined
def multiply_stored(x, T, words, w, w_stride, kind, outputs, panel_PWO, begin_O, out, out_stride, next_w):  # type: ignore[no-untyped-def]
    """Panels of `outputs` rows of weights at `w` times all rows of x, block after block; `next_w` comes after them."""
    size, begin, begin_stride = np.int64(2 if kind in FROM_HALVES else 4), begin_O.ctypes.data, NOTHING
    panel, count = panel_PWO.ctypes.data, (outputs + PANEL - 1) // PANEL
    for start in range(0, words, BLOCK):
        steps = min(BLOCK, words - start)
        for p in range(count):
            rows, place = w + p * PANEL * w_stride + start * size, panel + p * PANEL_BYTES
            pack(rows, w_stride, kind, min(PANEL, outputs - p * PANEL), place, steps)
        ahead, ahead_words = w + (start + BLOCK) * size, min(BLOCK, words - start - BLOCK)
        if ahead_words <= 0:
            ahead, ahead_words = next_w, min(BLOCK, words) if next_w else 0
        block, stride, pairs = x + start * T * 4, np.int64(BLOCK * 4), kind == PAIRS
        fetch = ahead_words * size if outputs % PANEL == 0 else NOTHING
        multiply(
            block, stride, T, panel, count, steps, begin, begin_stride, out, out_stride, pairs, ahead, w_stride, fetch
        )
        begin, begin_stride = out, out_stride


@kernel
def many_rows(blocks_BTW, words, w, w_stride, kind, bias_O, out_TO, together, threads):  # type: ignore[no-untyped-def]
    """out_TO = x_TD @ weights.T + bias; `blocks_BTW` holds x in blocks, `words` of them a row; `w` is an address.

    No bias is one of no numbers. Threads take some panels of outputs after others, so that a slow one takes fewer.
    """
    T, O = out_TO.shape  # noqa: E741 - the dimension key
    width, x, counter = together * PANEL, blocks_BTW.ctypes.data, np.zeros(1, np.int64)
    units = (O + width - 1) // width
    for _thread in prange(threads):
        control = flush_denormals(np.int64(kind in ROUNDED))
        panel_PWO, begin_O = np.zeros((together, BLOCK, PANEL), np.float32), np.zeros(width, np.float32)
        edge_TO = np.zeros((T if O % width else 1, width), np.float32)
        index = take(counter.ctypes.data)
        while index < units:
            following = take(counter.ctypes.data)
            o = index * width
            outputs = min(width, O - o)
            # a tile writes whole panels; the last one may not be whole
            whole = outputs % PANEL == 0
            place = out_TO.ctypes.data + o * 4 if whole else edge_TO.ctypes.data
            stride = np.int64(O * 4 if whole else width * 4)
            if bias_O.size:
                begin_O[:outputs] = bias_O[o : o + outputs]
            next_w = w + following * width * w_stride if (following + 1) * width <= O else NOTHING
            ours = w + o * w_stride
            multiply_stored(x, T, words, ours, w_stride, kind, outputs, panel_PWO, begin_O, place, stride, next_w)
            if not whole:
                out_TO[:, o:] = edge_TO[:, :outputs]
            index = following
        restore_control(control)
        panel_PWO[0, 0, 0], begin_O[0] = 0, 0  # an array is freed after its last use, and an address is none
    counter[0] = blocks_BTW[0, 0, 0]


@kernel
def gated_rows(blocks_BTW, words, gate, up, w_stride, kind, out_TF, together, threads):  # type: ignore[no-untyped-def]
    """out_TF = gelu(x_TD @ gate.T) * (x_TD @ up.T), some panels at a time: neither product leaves the caches."""
    T, F = out_TF.shape
    width, x, counter = together * PANEL, blocks_BTW.ctypes.data, np.zeros(1, np.int64)
    units = (F + width - 1) // width
    for _thread in prange(threads):
        control = flush_denormals(np.int64(kind in ROUNDED))
        panel_PWO, zeros_O = np.zeros((together, BLOCK, PANEL), np.float32), np.zeros(width, np.float32)
        gate_TO, up_TO = np.zeros((T, width), np.float32), np.zeros((T, width), np.float32)
        index, stride = take(counter.ctypes.data), np.int64(width * 4)
        while index < units:
            following = take(counter.ctypes.data)
            f = index * width
            outputs, ours = min(width, F - f), f * w_stride
            next_w = gate + following * width * w_stride if (following + 1) * width <= F else NOTHING
            our_gate, our_up = gate + ours, up + ours
            out = gate_TO.ctypes.data
            multiply_stored(x, T, words, our_gate, w_stride, kind, outputs, panel_PWO, zeros_O, out, stride, our_up)
            out = up_TO.ctypes.data
            multiply_stored(x, T, words, our_up, w_stride, kind, outputs, panel_PWO, zeros_O, out, stride, next_w)
            flush_denormals(np.int64(0))
            for t in range(T):
                gates, ups, results = gate_TO[t], up_TO[t], out_TF[t, f : f + outputs]
                for c in range(results.size):
                    results[c] = gelu_float32(gates[c]) * ups[c]
            flush_denormals(np.int64(kind in ROUNDED))
            index = following
        restore_control(control)
        panel_PWO[0, 0, 0], zeros_O[0] = 0, 0  # an array is freed after its last use, and an address is none
    counter[0] = blocks_BTW[0, 0, 0]


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
    """The same, rounded to bf16; `blocks_BTW` counts numbers, two a word, and so many has a row of x."""
    T, D = x_TD.shape
    for t in prange(T):
        for block in range(blocks_BTW.shape[0]):
            numbers = x_TD[t, block * 2 * BLOCK : min(D, (block + 1) * 2 * BLOCK)]
            halves = blocks_BTW[block, t]
            for k in range(numbers.size):
                halves[k] = bf16_bits(numbers[k])


@kernel
def swapped_blocks(x_TD, blocks_BTW):  # type: ignore[no-untyped-def]
    """Rounded to bf16 and widened again, the second of each two first."""
    T, D = x_TD.shape
    for t in prange(T):
        for block in range(blocks_BTW.shape[0]):
            numbers = x_TD[t, block * BLOCK : min(D, (block + 1) * BLOCK)]
            words = blocks_BTW[block, t]
            for k in range(0, numbers.size, 2):
                words[k] = as_float32(bf16_bits(numbers[k + 1]))
                words[k + 1] = as_float32(bf16_bits(numbers[k]))


def kind_of(weight_OD: Array, *, is_bf16: bool) -> int:
    """What a word of the panel is."""
    if is_bf16:
        return BF16_KIND
    return WIDENED if weight_OD.dtype == np.uint16 else FLOATS


def cut_in_blocks(x_TD: Array, kind: int) -> tuple[Array, int]:
    """The rows as the kernels read them, and the number of words in one. For bf16 they are of even length."""
    T, D = x_TD.shape
    words = D // 2 if kind == PAIRS else D
    blocks_BTW = empty((-(-words // BLOCK), T, BLOCK), np.uint32)
    if kind == PAIRS:
        pair_blocks(x_TD, blocks_BTW.view(np.uint16))
    elif kind == SWAPPED:
        swapped_blocks(x_TD, blocks_BTW.view(np.float32))
    else:
        float_blocks(x_TD, blocks_BTW.view(np.float32))
    return blocks_BTW, words


def panels_together(outputs: int, threads: int) -> int:
    """Panels that rows meet at once: fewer where threads would wait for the last of them."""
    return min(TOGETHER, max(1, outputs // (PANEL * UNITS * threads)))


def linear_rows(blocks_BTW: Array, words: int, weight_OD: Array, bias_O: Array | None, kind: int) -> Array:
    """Rows cut in blocks times one matrix."""
    (outputs, _), stride, threads = weight_OD.shape, weight_OD.strides[0], num_threads()
    out_TO, together = empty((blocks_BTW.shape[1], outputs)), panels_together(outputs, threads)
    bias_O = np.zeros(0, np.float32) if bias_O is None else np.require(widened(bias_O), requirements="CAW")
    many_rows(blocks_BTW, words, weight_OD.ctypes.data, stride, kind, bias_O, out_TO, together, threads)
    return out_TO


def gated_linear_rows(blocks_BTW: Array, words: int, gate_FD: Array, up_FD: Array, kind: int) -> Array:
    """Rows cut in blocks, through GeGLU."""
    (outputs, _), stride, threads = gate_FD.shape, gate_FD.strides[0], num_threads()
    out_TF, together = empty((blocks_BTW.shape[1], outputs)), panels_together(outputs, threads)
    gate, up = gate_FD.ctypes.data, up_FD.ctypes.data
    gated_rows(blocks_BTW, words, gate, up, stride, kind, out_TF, together, threads)
    return out_TF
