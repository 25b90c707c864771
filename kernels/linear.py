"""Linear layers: rows times a stored weight matrix, read from the memory map where it lies.

Many rows (reading a prompt): a panel of outputs is transposed and widened to float32, small enough for the first
cache, and the register tile of simd.py runs over all rows of x with it. Few rows (decoding): every stored row is read
once, in order, and multiplied with all inputs while it is in registers. Both sum in an order that depends neither on
the number of threads nor on how many rows there are, so sequences that decode together get the numbers they get alone.
"""

from typing import Any, TypeAlias

import numpy as np
from numba import prange

from pg2ref.kernels.compiling import inlined, kernel, num_threads
from pg2ref.kernels.cpu import cpu
from pg2ref.kernels.simd import RUN, VECTORS, make_dots, make_tile, make_transpose

Array: TypeAlias = np.ndarray[Any, Any]

LANES = cpu().lanes
PANEL = VECTORS * LANES  # outputs in a panel
BLOCK = 384  # inputs in a panel: 24 KB of float32 with AVX2
TILE_ROWS = 6 if cpu().registers < 32 else 12
FEW_ROWS = 16
TURN = RUN * 2 * LANES  # weights in a turn of `dots`

tile_all, tile_two, tile_one = make_tile(cpu(), TILE_ROWS), make_tile(cpu(), 2), make_tile(cpu(), 1)
dots_three, dots_two, dots_one = make_dots(cpu(), 3), make_dots(cpu(), 2), make_dots(cpu(), 1)
transpose_bf16, transpose_f32 = make_transpose(cpu(), bf16=True), make_transpose(cpu(), bf16=False)


@inlined
def multiply(x, x_stride, num_rows, panel, panel_stride, steps, out, out_stride, fresh):  # type: ignore[no-untyped-def]
    """One panel of outputs of all rows, in tiles of as many rows as the registers hold. Strides are in bytes."""
    t = 0
    while t + TILE_ROWS <= num_rows:
        tile_all(x + t * x_stride, x_stride, panel, panel_stride, steps, out + t * out_stride, out_stride, fresh)
        t += TILE_ROWS
    while t + 2 <= num_rows:
        tile_two(x + t * x_stride, x_stride, panel, panel_stride, steps, out + t * out_stride, out_stride, fresh)
        t += 2
    if t < num_rows:
        tile_one(x + t * x_stride, x_stride, panel, panel_stride, steps, out + t * out_stride, out_stride, fresh)


@inlined
def pack(w, w_stride, is_bf16, outputs, panel, steps):  # type: ignore[no-untyped-def]
    """Transpose `outputs` rows and `steps` columns of weights, both whole vectors, into a panel."""
    item = 2 if is_bf16 else 4
    for o in range(0, outputs, LANES):
        for k in range(0, steps, LANES):
            square = w + o * w_stride + k * item
            if is_bf16:
                transpose_bf16(square, w_stride, panel + (k * PANEL + o) * 4, PANEL * 4)
            else:
                transpose_f32(square, w_stride, panel + (k * PANEL + o) * 4, PANEL * 4)


@kernel
def many_rows(x_TD, w, is_bf16, out_TO, fresh, threads):  # type: ignore[no-untyped-def]
    """out_TO (+)= x_TD @ weights.T, a share of the panels for each thread; `w` is the address of the weights."""
    T, D = x_TD.shape
    O = out_TO.shape[1]  # noqa: E741 - the dimension key
    w_stride = D * (2 if is_bf16 else 4)
    panels = (O + PANEL - 1) // PANEL
    for thread in prange(threads):
        panel = np.zeros((BLOCK, PANEL), np.float32)
        x_TB = np.empty((T, BLOCK), np.float32)
        edge_TP = np.zeros((T, PANEL), np.float32)
        for start in range(0, D, BLOCK):
            steps = min(BLOCK, D - start)
            x_TB[:, :steps] = x_TD[:, start : start + steps]
            for index in range(panels * thread // threads, panels * (thread + 1) // threads):
                o = index * PANEL
                outputs = min(PANEL, O - o)
                pack(
                    w + o * w_stride + start * (2 if is_bf16 else 4),
                    w_stride,
                    is_bf16,
                    outputs,
                    panel.ctypes.data,
                    steps,
                )
                first = np.int64(fresh and start == 0)
                if outputs == PANEL:
                    place = out_TO.ctypes.data + o * 4
                    multiply(x_TB.ctypes.data, BLOCK * 4, T, panel.ctypes.data, PANEL * 4, steps, place, O * 4, first)
                else:  # the last panel is not full, and a tile writes whole ones
                    if first == 0 and start == 0:
                        edge_TP[:, :outputs] = out_TO[:, o:]
                    place = edge_TP.ctypes.data
                    multiply(
                        x_TB.ctypes.data, BLOCK * 4, T, panel.ctypes.data, PANEL * 4, steps, place, PANEL * 4, first
                    )
                    out_TO[:, o:] = edge_TP[:, :outputs]


@kernel
def few_rows(split_T2H, w, out_OT, threads):  # type: ignore[no-untyped-def]
    """The same for bf16 weights and few rows, each split into its even and its odd numbers."""
    T, half = split_T2H.shape[0], split_T2H.shape[2]
    O = out_OT.shape[0]  # noqa: E741
    turns = half * 2 // TURN
    for thread in prange(threads):
        for o in range(O * thread // threads, O * (thread + 1) // threads):
            row = w + o * half * 4
            t = 0
            while t + 3 <= T:
                x = split_T2H.ctypes.data + t * half * 8
                dots_three(row, turns, x, half * 8, half * 4, out_OT.ctypes.data + (o * T + t) * 4, 4)
                t += 3
            x = split_T2H.ctypes.data + t * half * 8
            if t + 2 == T:
                dots_two(row, turns, x, half * 8, half * 4, out_OT.ctypes.data + (o * T + t) * 4, 4)
            elif t + 1 == T:
                dots_one(row, turns, x, half * 8, half * 4, out_OT.ctypes.data + (o * T + t) * 4, 4)


def linear(x_TD: Array, weight_OD: Array, bias_O: Array | None = None) -> Array:
    """Multiply float32 rows by a stored weight matrix, `x @ weight.T + bias`; the same as model/ops.py, linear.

    bf16 and float32 weights are read where they lie; float16 is widened first, a copy.
    """
    x_TD = np.ascontiguousarray(x_TD, np.float32)
    T, D = x_TD.shape
    O = weight_OD.shape[0]  # noqa: E741
    is_bf16 = weight_OD.dtype == np.uint16
    if T <= FEW_ROWS and is_bf16 and D % TURN == 0 and weight_OD.flags.c_contiguous:
        out_OT = np.empty((O, T), np.float32)
        split_T2H = np.ascontiguousarray(x_TD.reshape(T, D // 2, 2).transpose(0, 2, 1))
        few_rows(split_T2H, weight_OD.ctypes.data, out_OT, num_threads())
        out_TO = np.ascontiguousarray(out_OT.T)
        return out_TO if bias_O is None else out_TO + widened(bias_O)
    if O % LANES or D % LANES or not weight_OD.flags.c_contiguous or weight_OD.dtype.itemsize == 8:
        weight_OD, x_TD = padded(weight_OD), padded(x_TD, rows=1)
    elif weight_OD.dtype == np.float16:
        weight_OD = weight_OD.astype(np.float32)
    out_TO = np.empty((T, weight_OD.shape[0]), np.float32)
    if bias_O is not None:
        out_TO[:, :O] = widened(bias_O)
    many_rows(x_TD, weight_OD.ctypes.data, is_bf16, out_TO, bias_O is None, num_threads())
    return out_TO[:, :O]


def widened(stored: Array) -> Array:
    """A small stored array as float32."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def padded(matrix: Array, rows: int = LANES) -> Array:
    """A copy with zeros up to whole vectors: shapes that no published model has."""
    stored = matrix if matrix.dtype == np.uint16 else matrix.astype(np.float32)
    shape = [-(-size // lanes) * lanes for size, lanes in zip(stored.shape, (rows, LANES), strict=True)]
    copy = np.zeros(shape, stored.dtype)
    copy[: stored.shape[0], : stored.shape[1]] = stored
    return copy
