"""Linear layers with int8 and int4 weights: inputs are rounded to int8 in groups, products are integer.

The codes of a checkpoint lie as the tile of simd/group_tile.py reads them, so nothing is packed, and one row (decoding)
and many rows (reading a prompt) take the same way: a row's numbers do not depend on its company.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange

from pg2ref.kernels.compiling import inlined, kernel, num_threads, run
from pg2ref.kernels.simd.cpu import cpu
from pg2ref.kernels.simd.group_tile import GROUP, LANES, make_group_tile
from pg2ref.kernels.simd.machine import take
from pg2ref.kernels.stored import Array, widened

BLOCK = (
    72  # groups: rows of 2,304 bytes, of which no two of a tile meet in one cache set, and all lie in the second cache
)
TILE_ROWS = 12 if cpu().registers == 32 else 4
SHARE = 4  # blocks of outputs that a thread takes at a time
MOST_CODE = np.float32(127)
SMALLEST_INPUT = np.float32(2.0**-100)  # a group of smaller ones is taken for 0: MOST_CODE over them might overflow

int8_all, int8_two, int8_one = (make_group_tile(cpu(), 8, rows) for rows in (TILE_ROWS, 2, 1))
int4_all, int4_two, int4_one = (make_group_tile(cpu(), 4, rows) for rows in (TILE_ROWS, 2, 1))


@kernel
def quantize_rows(x_TD, zero, codes_BTX, scales_BTG, corrections_BTG):  # type: ignore[no-untyped-def]
    """Each group of inputs as int8 codes and a scale; `corrections` are -zero times the sum of its codes."""
    T, D = x_TD.shape
    for t in prange(T):
        for group in range((D + GROUP - 1) // GROUP):
            block, g = group // BLOCK, group % BLOCK
            numbers = x_TD[t, group * GROUP : min(D, (group + 1) * GROUP)]
            codes = codes_BTX[block, t, g * GROUP : (g + 1) * GROUP]
            largest = np.float32(0)
            for k in range(numbers.size):
                largest = max(largest, abs(numbers[k]))
            inverse = MOST_CODE / largest if largest >= SMALLEST_INPUT else np.float32(0)
            total = np.int32(0)
            for k in range(numbers.size):
                code = np.int32(np.rint(numbers[k] * inverse))
                codes[k] = code
                total += code
            for k in range(numbers.size):  # a NaN is lost by `max` and by the codes: it goes into the scale
                largest += numbers[k] * np.float32(0)
            scales_BTG[block, t, g] = largest / MOST_CODE
            corrections_BTG[block, t, g] = -np.int32(zero) * total


@inlined
def multiply_rows(x, x_stride, x_scales, corrections, g_stride, T, codes, scales, groups, out, out_stride, fresh, bits):  # type: ignore[no-untyped-def]
    """One block of outputs of all rows, in tiles of as many rows as the registers hold."""
    t = 0
    while t < T:
        rows = TILE_ROWS if t + TILE_ROWS <= T else 2 if t + 2 <= T else 1
        a, b, c, d = x + t * x_stride, x_scales + t * g_stride, corrections + t * g_stride, out + t * out_stride
        if bits == 8:
            if rows == TILE_ROWS:
                int8_all(a, x_stride, b, c, g_stride, codes, scales, groups, d, out_stride, fresh)
            elif rows == 2:
                int8_two(a, x_stride, b, c, g_stride, codes, scales, groups, d, out_stride, fresh)
            else:
                int8_one(a, x_stride, b, c, g_stride, codes, scales, groups, d, out_stride, fresh)
        elif rows == TILE_ROWS:
            int4_all(a, x_stride, b, c, g_stride, codes, scales, groups, d, out_stride, fresh)
        elif rows == 2:
            int4_two(a, x_stride, b, c, g_stride, codes, scales, groups, d, out_stride, fresh)
        else:
            int4_one(a, x_stride, b, c, g_stride, codes, scales, groups, d, out_stride, fresh)
        t += rows


@kernel
def multiply_blocks(codes_BTX, scales_BTG, corrections_BTG, codes, scales, groups, bits, out_TO, fresh, threads):  # type: ignore[no-untyped-def]
    """out_TO (+)= x @ weights.T; `codes` and `scales` are the addresses of the weights'."""
    T, O = out_TO.shape  # noqa: E741 - the dimension key
    x, x_scales, corrections = codes_BTX.ctypes.data, scales_BTG.ctypes.data, corrections_BTG.ctypes.data
    code_bytes, scale_bytes = np.int64(GROUP * LANES * bits // 8), np.int64(2 * LANES)  # of a group
    counter = np.zeros(1, np.int64)
    for _thread in prange(threads):
        first = take(counter.ctypes.data) * SHARE
        while first * LANES < O:
            for index in range(first, min(O // LANES, first + SHARE)):
                out = out_TO.ctypes.data + index * LANES * 4
                for start in range(0, groups, BLOCK):
                    block = start // BLOCK
                    before = index * groups + start
                    multiply_rows(
                        x + block * T * BLOCK * GROUP,
                        np.int64(BLOCK * GROUP),
                        x_scales + block * T * BLOCK * 4,
                        corrections + block * T * BLOCK * 4,
                        np.int64(BLOCK * 4),
                        T,
                        codes + before * code_bytes,
                        scales + before * scale_bytes,
                        np.int64(min(BLOCK, groups - start)),
                        out,
                        np.int64(O * 4),
                        np.int64(fresh and start == 0),
                        bits,
                    )
            first = take(counter.ctypes.data) * SHARE
    counter[0] = codes_BTX[0, 0, 0] + scales_BTG[0, 0, 0] + corrections_BTG[0, 0, 0]  # here they still live


def multiply(x_TD: Array, weights: Sequence[Any], biases: Sequence[Array | None]) -> list[Array]:
    """The same rows times each of some quantised matrices, `x @ weight.T + bias`; their layout: pg2ref/quantized.py."""
    x_TD = np.ascontiguousarray(x_TD, np.float32)
    inputs: dict[int, tuple[Array, Array, Array]] = {}
    outs = []
    for weight, bias_O in zip(weights, biases, strict=True):
        zero = 1 << (weight.bits - 1)
        if zero not in inputs:
            inputs[zero] = quantized_rows(x_TD, zero)
        outs.append(multiply_one(inputs[zero], weight, bias_O))
    return outs


def quantized_rows(x_TD: Array, zero: int) -> tuple[Array, Array, Array]:
    """Rows as the tile reads them: codes, scales and corrections, cut into blocks of groups."""
    T, D = x_TD.shape
    shape = (-(-D // (BLOCK * GROUP)), T, BLOCK)
    codes_BTX = np.zeros((*shape[:2], BLOCK * GROUP), np.int8)
    scales_BTG, corrections_BTG = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    run(quantize_rows, x_TD.size, x_TD, zero, codes_BTX, scales_BTG, corrections_BTG)
    return codes_BTX, scales_BTG, corrections_BTG


def multiply_one(inputs: tuple[Array, Array, Array], weight: Any, bias_O: Array | None) -> Array:
    """Rows times one matrix."""
    outputs, (blocks, groups, _) = weight.shape[0], weight.scales.shape
    out_TO = np.empty((inputs[0].shape[1], blocks * LANES), np.float32)
    if bias_O is not None:
        out_TO[:, :outputs] = widened(bias_O)
    codes, scales, fresh = weight.codes.ctypes.data, weight.scales.ctypes.data, bias_O is None
    multiply_blocks(*inputs, codes, scales, groups, weight.bits, out_TO, fresh, num_threads())
    return out_TO[:, :outputs]
