"""Linear layers with int8 and int4 weights: inputs are rounded to int8 in groups, products are integer.

The codes of a checkpoint lie as the tile of simd/group_tile.py reads them, so nothing is packed, and one row (decoding)
and many rows (reading a prompt) take the same way: a row's numbers do not depend on its company.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange

from pg2ref.kernels.compiling import inlined, kernel, num_threads, run
from pg2ref.kernels.exponential import gelu_float32
from pg2ref.kernels.matrices import MOST, are_alike, as_tuple, check_widths, next_share
from pg2ref.kernels.results import empty
from pg2ref.kernels.simd.cpu import cpu
from pg2ref.kernels.simd.group_tile import GROUP, LANES, make_group_tile
from pg2ref.kernels.simd.machine import CACHE_LINE, prefetch, take
from pg2ref.kernels.stored import Array, widened

# Groups: rows of 2,304 bytes, of which no two of a tile meet in one cache set, and all lie in the second cache.
GROUPS_AT_ONCE = 72
VECTORS, TILE_ROWS = (2, 6) if cpu().registers == 32 else (1, 4)
FEWER_ROWS = 2
PANEL = VECTORS * LANES  # outputs in a panel: so many blocks of the file beside each other
SHARE = 4 // VECTORS  # panels that a thread takes at a time
MANY_ROWS = 96  # from which on the codes that follow are fetched
MOST_CODE = np.float32(127)  # never -128: simd/products.py counts on it
SMALLEST_INPUT = np.float32(2.0**-100)  # a group of smaller ones is taken for 0: MOST_CODE over them might overflow

tile_all, tile_some, tile_one = (make_group_tile(cpu(), rows, VECTORS) for rows in (TILE_ROWS, FEWER_ROWS, 1))


@kernel
def quantize_rows(x_TD, zero, codes_BTX, scales_BTG, corrections_BTG):  # type: ignore[no-untyped-def]
    """Each group of inputs as int8 codes and a scale; `corrections` are -zero times the sum of its codes."""
    T, D = x_TD.shape
    for t in prange(T):
        for group in range((D + GROUP - 1) // GROUP):
            block, g = group // GROUPS_AT_ONCE, group % GROUPS_AT_ONCE
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
            strangers = np.int32(0)
            for k in range(numbers.size):  # `max` and codes lose what is not finite: it goes into the scale
                strangers += np.int32(numbers[k] - numbers[k] != 0)
            scales_BTG[block, t, g] = largest / MOST_CODE if strangers == 0 else np.float32(np.nan)
            corrections_BTG[block, t, g] = -np.int32(zero) * total


@inlined
def multiply_rows(
    x, x_stride, x_scales, corrections, g_stride, T, codes, scales, step, groups, ahead, out, out_stride, fresh, bits
):  # type: ignore[no-untyped-def]
    """One panel of outputs of all rows, in tiles of as many rows as the registers hold. `step`: as the tile has it.

    Where there are many, the codes that come after these, at `ahead`, come closer meanwhile, a part with each tile.
    """
    group_bytes = GROUP * LANES * bits // 8
    part = np.int64(groups * group_bytes * TILE_ROWS // T) if T >= MANY_ROWS else np.int64(0)
    end = ahead + groups * group_bytes
    t = 0
    while t < T:
        for line in range(ahead, min(end, ahead + part), CACHE_LINE):
            for vector in range(VECTORS):
                prefetch(line + vector * step * group_bytes)
        ahead += part
        rows = TILE_ROWS if t + TILE_ROWS <= T else FEWER_ROWS if t + FEWER_ROWS <= T else 1
        a, b, c, d = x + t * x_stride, x_scales + t * g_stride, corrections + t * g_stride, out + t * out_stride
        if rows == TILE_ROWS:
            tile_all(a, x_stride, b, c, g_stride, codes, scales, step, groups, d, out_stride, fresh, bits)
        elif rows == FEWER_ROWS:
            tile_some(a, x_stride, b, c, g_stride, codes, scales, step, groups, d, out_stride, fresh, bits)
        else:
            tile_one(a, x_stride, b, c, g_stride, codes, scales, step, groups, d, out_stride, fresh, bits)
        t += rows


@inlined
def multiply_panel(x, x_scales, corrections, T, codes, scales, index, blocks, groups, out, out_stride, fresh, bits):  # type: ignore[no-untyped-def]
    """The panel `index` of outputs of all rows, a block of inputs after the other; `blocks` of outputs there are."""
    code_bytes, scale_bytes = np.int64(GROUP * LANES * bits // 8), np.int64(2 * LANES)  # of a group
    step = np.int64(groups if (index + 1) * VECTORS <= blocks else 0)
    for start in range(0, groups, GROUPS_AT_ONCE):
        passed, before = (start // GROUPS_AT_ONCE) * T, index * VECTORS * groups + start
        after = before + GROUPS_AT_ONCE if start + GROUPS_AT_ONCE < groups else (index + 1) * VECTORS * groups
        multiply_rows(
            x + passed * GROUPS_AT_ONCE * GROUP,
            np.int64(GROUPS_AT_ONCE * GROUP),
            x_scales + passed * GROUPS_AT_ONCE * 4,
            corrections + passed * GROUPS_AT_ONCE * 4,
            np.int64(GROUPS_AT_ONCE * 4),
            T,
            codes + before * code_bytes,
            scales + before * scale_bytes,
            step,
            np.int64(min(GROUPS_AT_ONCE, groups - start)),
            codes + after * code_bytes,
            out,
            out_stride,
            np.int64(fresh and start == 0),
            bits,
        )


@kernel
def multiply_panels(codes_BTX, scales_BTG, corrections_BTG, codes, scales, outs, count, bits, fresh, threads):  # type: ignore[no-untyped-def]
    """out_TO (+)= x @ weights.T for the first `count` of the MOST matrices and outs."""
    T, groups = codes_BTX.shape[1], scales[0].shape[1]
    x, x_scales, corrections = codes_BTX.ctypes.data, scales_BTG.ctypes.data, corrections_BTG.ctypes.data
    counter = np.zeros(1, np.int64)
    codes_M, scales_M, outs_M, blocks_M, panels_M, shares_M = np.empty((6, MOST), np.int64)
    for m in range(count):
        codes_M[m], scales_M[m], outs_M[m] = codes[m].ctypes.data, scales[m].ctypes.data, outs[m].ctypes.data
        blocks_M[m] = scales[m].shape[0]
        panels_M[m] = (blocks_M[m] + VECTORS - 1) // VECTORS
        shares_M[m] = (panels_M[m] + SHARE - 1) // SHARE
    for _thread in prange(threads):
        m, share = next_share(counter.ctypes.data, shares_M, count)
        while m < count:
            our_codes, our_scales, blocks = codes_M[m], scales_M[m], blocks_M[m]
            for index in range(share * SHARE, min(panels_M[m], share * SHARE + SHARE)):
                out, stride = outs_M[m] + index * PANEL * 4, np.int64(blocks * LANES * 4)
                multiply_panel(
                    x, x_scales, corrections, T, our_codes, our_scales, index, blocks, groups, out, stride, fresh, bits
                )
            m, share = next_share(counter.ctypes.data, shares_M, count)
    counter[0] = codes_BTX[0, 0, 0] + scales_BTG[0, 0, 0] + corrections_BTG[0, 0, 0]  # here they still live


@kernel
def gated_panels(codes_BTX, scales_BTG, corrections_BTG, gate, gates, up, ups, groups, bits, out_TF, threads):  # type: ignore[no-untyped-def]
    """out_TF = gelu(x @ gate.T) * (x @ up.T), panel by panel, so that neither product leaves the caches.

    Addresses: `gate` and `up` of the codes, `gates` and `ups` of their scales.
    """
    T, F = out_TF.shape
    x, x_scales, corrections = codes_BTX.ctypes.data, scales_BTG.ctypes.data, corrections_BTG.ctypes.data
    counter, stride, blocks = np.zeros(1, np.int64), np.int64(PANEL * 4), F // LANES
    panels = (blocks + VECTORS - 1) // VECTORS
    for _thread in prange(threads):
        gate_TP, up_TP = np.zeros((T, PANEL), np.float32), np.zeros((T, PANEL), np.float32)
        first = take(counter.ctypes.data) * SHARE
        while first < panels:
            for index in range(first, min(panels, first + SHARE)):
                out = gate_TP.ctypes.data
                multiply_panel(x, x_scales, corrections, T, gate, gates, index, blocks, groups, out, stride, True, bits)
                out = up_TP.ctypes.data
                multiply_panel(x, x_scales, corrections, T, up, ups, index, blocks, groups, out, stride, True, bits)
                f = index * PANEL
                for t in range(T):
                    results = out_TF[t, f : min(F, f + PANEL)]
                    gate_P, up_P = gate_TP[t], up_TP[t]
                    for c in range(results.size):
                        results[c] = gelu_float32(gate_P[c]) * up_P[c]
            first = take(counter.ctypes.data) * SHARE
        gate_TP[0, 0], up_TP[0, 0] = 0, 0  # an array is freed after its last use, and an address is none
    counter[0] = codes_BTX[0, 0, 0] + scales_BTG[0, 0, 0] + corrections_BTG[0, 0, 0]  # here they still live


def linear_each(x_TD: Array, weights: Sequence[Any], biases: Sequence[Array | None]) -> list[Array]:
    """The same rows times each of some quantised matrices, `x @ weight.T + bias`; their layout: pg2ref/quantized.py.

    Raises ValueError where the rows are not as long as the matrices'.
    """
    check_widths(x_TD, weights)
    x_TD = np.ascontiguousarray(x_TD, np.float32)
    has_bias = {bias is not None for bias in biases}
    alike = are_alike([weight.codes for weight in weights]) and are_alike([weight.scales for weight in weights])
    if len({weight.bits for weight in weights}) > 1 or len(has_bias) > 1 or len(weights) > MOST or not alike:
        return [linear_each(x_TD, [weight], [bias])[0] for weight, bias in zip(weights, biases, strict=True)]
    bits, fresh, count = weights[0].bits, has_bias == {False}, len(weights)
    outs = [empty((len(x_TD), len(weight.scales) * LANES)) for weight in weights]
    for out_TO, weight, bias_O in zip(outs, weights, biases, strict=True):
        if bias_O is not None:
            out_TO[:, : weight.shape[0]] = widened(bias_O)
    codes, scales = as_tuple([weight.codes for weight in weights]), as_tuple([weight.scales for weight in weights])
    inputs = quantized_rows(x_TD, 1 << (bits - 1))
    multiply_panels(*inputs, codes, scales, as_tuple(outs), count, bits, fresh, num_threads())
    return [out_TO[:, : weight.shape[0]] for out_TO, weight in zip(outs, weights, strict=True)]


def quantized_rows(x_TD: Array, zero: int) -> tuple[Array, Array, Array]:
    """Rows as the tile reads them: codes, scales and corrections, cut into blocks of groups."""
    T, D = x_TD.shape
    shape = (-(-D // (GROUPS_AT_ONCE * GROUP)), T, GROUPS_AT_ONCE)
    codes_BTX = np.zeros((*shape[:2], GROUPS_AT_ONCE * GROUP), np.int8)
    scales_BTG, corrections_BTG = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    run(quantize_rows, x_TD.size, x_TD, zero, codes_BTX, scales_BTG, corrections_BTG)
    return codes_BTX, scales_BTG, corrections_BTG


def gated_linear(x_TD: Array, gate: Any, up: Any) -> Array:
    """GeGLU of two quantised matrices of as many bits, gelu(x @ gate.T) * (x @ up.T); raises as `linear_each`."""
    check_widths(x_TD, [gate, up])
    inputs = quantized_rows(np.ascontiguousarray(x_TD, np.float32), 1 << (gate.bits - 1))
    blocks, groups, _ = gate.scales.shape
    out_TF = empty((len(x_TD), blocks * LANES))
    places = [array.ctypes.data for array in (gate.codes, gate.scales, up.codes, up.scales)]
    gated_panels(*inputs, *places, groups, gate.bits, out_TF, num_threads())
    return out_TF[:, : gate.shape[0]]
