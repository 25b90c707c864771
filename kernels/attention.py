"""Attention of a block of queries at a time, fused: scores, soft cap, softmax and values never leave the cache.

A query reads one contiguous range of keys (model/masks.py), so a mask is two integers a row and costs nothing; keys
that no row of a block reads are not touched. The products run on the register tile of simd.py.
"""

import numpy as np
from numba import prange

from pg2ref.kernels.compiling import inlined, kernel
from pg2ref.kernels.exponential import exp_float32, tanh_float64
from pg2ref.kernels.linear import LANES, PANEL, Array, multiply, transpose_words

QUERIES = 60  # in a block: ten tiles of six rows


@inlined
def pack_keys(key_SKH, head, first, count, panel_HP):  # type: ignore[no-untyped-def]
    """Transpose `count` keys of one head into a panel; columns behind them keep whatever finite numbers they held."""
    K, H = key_SKH.shape[1], key_SKH.shape[2]
    whole = count // LANES * LANES
    for s in range(0, whole, LANES):
        for h in range(0, H, LANES):
            square = key_SKH.ctypes.data + (((first + s) * K + head) * H + h) * 4
            transpose_words(square, K * H * 4, panel_HP.ctypes.data + (h * PANEL + s) * 4, PANEL * 4)
    for s in range(whole, count):
        for h in range(H):
            panel_HP[h, s] = key_SKH[first + s, head, h]


@inlined
def softmax_range(scores_S, first, last, keys, scale, cap):  # type: ignore[no-untyped-def]
    """Scores to weights in place: scale, cap, softmax over first..last, zero elsewhere. `cap` 0 means none."""
    if cap > 0:
        for s in range(first, last + 1):
            scores_S[s] = cap * tanh_float64(scores_S[s] * scale / cap)
    else:
        for s in range(first, last + 1):
            scores_S[s] = scores_S[s] * scale
    largest = scores_S[first]
    for s in range(first, last + 1):
        largest = max(largest, scores_S[s])
    total = 0.0
    for s in range(first, last + 1):
        scores_S[s] = exp_float32(scores_S[s] - largest)
        total += scores_S[s]
    inverse = np.float32(1.0 / total)
    for s in range(first, last + 1):
        scores_S[s] *= inverse
    scores_S[:first] = 0
    scores_S[last + 1 : keys] = 0


@kernel
def attend_blocks(query_TNH, key_SKH, value_SKH, first_T, last_T, scale, cap, out_TNH):  # type: ignore[no-untyped-def]
    """One (head, block of queries) after the other on each thread; H is a multiple of the vector's lanes."""
    T, N, H = query_TNH.shape
    K = key_SKH.shape[1]
    blocks = (T + QUERIES - 1) // QUERIES
    for work in prange(N * blocks):
        n, start = work // blocks, (work % blocks) * QUERIES
        rows = min(QUERIES, T - start)
        first, last = first_T[start], last_T[start]
        for t in range(start, start + rows):
            first, last = min(first, first_T[t]), max(last, last_T[t])
        keys = last - first + 1
        width = (keys + PANEL - 1) // PANEL * PANEL
        weights_TS = np.empty((rows, width), np.float32)
        panel = np.zeros((H, PANEL), np.float32)
        key_head = n // (N // K)
        stride = np.int64(K * H * 4)
        query = query_TNH.ctypes.data + (start * N + n) * H * 4
        for s in range(0, keys, PANEL):
            pack_keys(key_SKH, key_head, first + s, min(PANEL, keys - s), panel)
            place = weights_TS.ctypes.data + s * 4
            multiply(query, N * H * 4, rows, panel.ctypes.data, PANEL * 4, H, place, width * 4, np.int64(1))
        for t in range(rows):
            softmax_range(weights_TS[t], first_T[start + t] - first, last_T[start + t] - first, keys, scale, cap)
        out = out_TNH.ctypes.data + (start * N + n) * H * 4
        values = value_SKH.ctypes.data + (first * K + key_head) * H * 4
        weights = weights_TS.ctypes.data
        whole = H // PANEL * PANEL
        for h in range(0, whole, PANEL):
            multiply(weights, width * 4, rows, values + h * 4, stride, keys, out + h * 4, N * H * 4, np.int64(1))
        if whole < H:
            edge_SP = np.zeros((keys, PANEL), np.float32)
            edge_TP = np.empty((rows, PANEL), np.float32)
            edge_SP[:, : H - whole] = value_SKH[first : last + 1, key_head, whole:]
            multiply(
                weights,
                width * 4,
                rows,
                edge_SP.ctypes.data,
                PANEL * 4,
                keys,
                edge_TP.ctypes.data,
                PANEL * 4,
                np.int64(1),
            )
            out_TNH[start : start + rows, n, whole:] = edge_TP[:, : H - whole]
            edge_SP[0, 0] = 0  # an array is freed after its last use, and an address is none: here it still lives
        weights_TS[0, 0] = 0


def attend(
    query_TNH: Array,
    key_SKH: Array,
    value_SKH: Array,
    first_key_T: Array,
    last_key_T: Array,
    *,
    scale: float,
    logit_cap: float | None,
) -> Array:
    """Attention with key ranges, grouped heads and soft cap; see model/ops.py, attend."""
    query_TNH, key_SKH, value_SKH = (np.ascontiguousarray(array) for array in (query_TNH, key_SKH, value_SKH))
    H = query_TNH.shape[2]
    if extra := -H % LANES:
        query_TNH, key_SKH, value_SKH = (
            np.pad(a, ((0, 0), (0, 0), (0, extra))) for a in (query_TNH, key_SKH, value_SKH)
        )
    out_TNH = np.empty_like(query_TNH)
    cap = 0.0 if logit_cap is None else float(logit_cap)
    attend_blocks(query_TNH, key_SKH, value_SKH, first_key_T, last_key_T, float(scale), cap, out_TNH)
    return out_TNH[..., :H]
