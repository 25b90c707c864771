"""Attention of a block of queries at a time, fused: scores, soft cap, softmax and values never leave the cache.

A query reads one contiguous range of keys (model/masks.py), so a mask is two integers a row and costs nothing; keys
that no row of a block reads are not touched. The products run on the register tile of simd/tile.py: keys and values
are packed into its panels once, then every block of queries uses them.

With `pairs` the inputs of both products are bf16, two a word, else float32.
"""

import numpy as np
from numba import prange

from pg2ref.kernels.compiling import inlined, kernel, num_threads
from pg2ref.kernels.exponential import ONE, exp_float32, tanh_float32
from pg2ref.kernels.panels import LANES, NOTHING, PANEL, TILE_ROWS, multiply, transpose_words
from pg2ref.kernels.results import empty
from pg2ref.kernels.simd.largest import largest_of
from pg2ref.kernels.simd.machine import CACHE_LINE, flush_denormals, prefetch, restore_control, take
from pg2ref.kernels.simd.sums import dot, sum_of
from pg2ref.kernels.stored import Array, as_float32, bf16_bits, rounded, widened

QUERIES = 8 * TILE_ROWS  # in a block
AHEAD = 6  # tokens


@inlined
def multiply_panel(x, x_stride, num_rows, panel, steps, zeros_P, out, out_stride, pairs):  # type: ignore[no-untyped-def]
    """A packed panel times some rows."""
    zeros, none = zeros_P.ctypes.data, NOTHING
    multiply(x, x_stride, num_rows, panel, 1, steps, zeros, none, out, out_stride, pairs, none, none, none)


@inlined
def pack_keys(words_SKW, panel_WP, head, start):  # type: ignore[no-untyped-def]
    """Transpose a panel's keys of one head; columns behind the last key stay zero."""
    S, K, W = words_SKW.shape
    count, stride = min(PANEL, S - start), np.int64(K * W * 4)
    keys, squares = words_SKW.ctypes.data + (start * K + head) * W * 4, W // LANES * LANES
    whole = count // LANES * LANES
    for s in range(0, whole, LANES):
        for w in range(0, squares, LANES):
            transpose_words(keys + s * stride + w * 4, stride, panel_WP.ctypes.data + (w * PANEL + s) * 4, PANEL * 4)
    for s in range(count):
        for w in range(squares if s < whole else 0, W):
            panel_WP[w, s] = words_SKW[start + s, head, w]


@inlined
def pack_value_pairs(value_SKH, panel_WP, head, start):  # type: ignore[no-untyped-def]
    """Interleave two tokens' values a word; an odd last one stands beside zero."""
    S, _, H = value_SKH.shape
    columns = min(PANEL, H - start)
    for s in range(0, S - 1, 2):
        first, second = value_SKH[s, head, start : start + columns], value_SKH[s + 1, head, start : start + columns]
        words = panel_WP[s // 2]
        for h in range(columns):
            words[h] = np.uint32(first[h]) | np.uint32(second[h]) << np.uint32(16)
    if S % 2:
        for h in range(columns):
            panel_WP[S // 2, h] = np.uint32(value_SKH[S - 1, head, start + h])


@kernel
def pack_heads(key_words_SKW, value_SKH, keys_KPWP, values_KPWP, pairs):  # type: ignore[no-untyped-def]
    """All panels of keys, and of values (bf16 bits, or words of float32)."""
    K, key_panels, value_panels = keys_KPWP.shape[0], keys_KPWP.shape[1], values_KPWP.shape[1]
    H = value_SKH.shape[2]
    for work in prange(K * (key_panels + value_panels)):
        k, panel = work % K, work // K
        if panel < key_panels:
            pack_keys(key_words_SKW, keys_KPWP[k, panel], k, panel * PANEL)
        elif pairs:
            pack_value_pairs(value_SKH, values_KPWP[k, panel - key_panels], k, (panel - key_panels) * PANEL)
        else:
            start = (panel - key_panels) * PANEL
            stop = min(H, start + PANEL)
            for s in range(value_SKH.shape[0]):
                values_KPWP[k, panel - key_panels, s, : stop - start] = value_SKH[s, k, start:stop]


@inlined
def softmax(scores_S, scale, cap):  # type: ignore[no-untyped-def]
    """Scores of the keys that a query reads to weights in place: scale, cap, softmax. `cap` 0 means none.

    Returns what every weight is still to be multiplied by: whoever reads them next does it on the way.
    """
    if cap > 0:
        squeeze = scale / cap
        for s in range(scores_S.size):
            scores_S[s] = cap * tanh_float32(scores_S[s] * squeeze)
        scale = ONE
    largest = largest_of(scores_S)
    for s in range(scores_S.size):
        scores_S[s] = exp_float32((scores_S[s] - largest) * scale)
    return np.float32(1.0 / sum_of(scores_S))


@inlined
def scale_all(numbers, factor):  # type: ignore[no-untyped-def]
    """Multiply in place."""
    for s in range(numbers.size):
        numbers[s] *= factor


@inlined
def round_scaled(numbers, factor, halves):  # type: ignore[no-untyped-def]
    """The bf16 bits of numbers times a factor."""
    for s in range(numbers.size):
        halves[s] = bf16_bits(numbers[s] * factor)


@inlined
def score_block(work, query_TNW, keys_KPWP, first_T, last_T, zeros_P, scores_TS, pairs):  # type: ignore[no-untyped-def]
    """Products of a block of one head's queries with the keys that any of them reads, into `scores_TS`.

    Returns the head, the first query, the number of queries, the first key, where a panel begins, and the last key.
    """
    T, N, W = query_TNW.shape
    blocks, width = (T + QUERIES - 1) // QUERIES, np.int64(scores_TS.shape[1] * 4)
    n, start = work // blocks, (work % blocks) * QUERIES
    rows = min(QUERIES, T - start)
    first, last = first_T[start : start + rows].min(), last_T[start : start + rows].max()
    first -= first % PANEL
    query, keys_PWP = query_TNW.ctypes.data + (start * N + n) * W * 4, keys_KPWP[n // (N // keys_KPWP.shape[0])]
    for s in range(first, last + 1, PANEL):
        panel, place = keys_PWP[s // PANEL].ctypes.data, scores_TS.ctypes.data + (s - first) * 4
        multiply_panel(query, N * W * 4, rows, panel, W, zeros_P, place, width, pairs)
    return n, start, rows, first, last


@kernel
def attend_blocks(query_TNW, keys_KPWP, values_KPWP, first_T, last_T, scale, cap, out_TNH, pairs, threads):  # type: ignore[no-untyped-def]
    """One (head, block of queries) after the other on each thread."""
    T, N, _ = query_TNW.shape
    H, group, blocks = out_TNH.shape[2], N // keys_KPWP.shape[0], (T + QUERIES - 1) // QUERIES
    width, value_words, counter = keys_KPWP.shape[1] * PANEL, values_KPWP.shape[2], np.zeros(1, np.int64)
    for _thread in prange(threads):
        control = flush_denormals(np.int64(pairs))
        weights_TS = np.zeros((QUERIES, width), np.float32)
        halves_TS = np.zeros((QUERIES, width), np.uint16)
        edge_TP, zeros_P = np.zeros((QUERIES, PANEL), np.float32), np.zeros(PANEL, np.float32)
        work = take(counter.ctypes.data)
        while work < N * blocks:
            n, start, rows, first, last = score_block(
                work, query_TNW, keys_KPWP, first_T, last_T, zeros_P, weights_TS, pairs
            )
            keys = last + 1 - first
            for t in range(rows):
                begin, end = first_T[start + t] - first, last_T[start + t] + 1 - first
                scores_S, halves_S = weights_TS[t, : keys + keys % 2], halves_TS[t, : keys + keys % 2]
                inverse = softmax(scores_S[begin:end], scale, cap)
                if pairs:
                    halves_S[:begin], halves_S[end:] = 0, 0
                    round_scaled(scores_S[begin:end], inverse, halves_S[begin:end])
                else:
                    scores_S[:begin], scores_S[end:] = 0, 0
                    scale_all(scores_S[begin:end], inverse)
            weights, stride = weights_TS.ctypes.data, np.int64(width * 4)
            first_word, words = first, keys
            if pairs:
                weights, stride = halves_TS.ctypes.data, np.int64(width * 2)
                first_word, words = first // 2, (keys + 1) // 2
            for h in range(0, H, PANEL):
                values = values_KPWP.ctypes.data + (
                    ((n // group) * values_KPWP.shape[1] + h // PANEL) * value_words + first_word
                ) * (PANEL * 4)
                edge = edge_TP.ctypes.data
                multiply_panel(weights, stride, rows, values, words, zeros_P, edge, PANEL * 4, pairs)
                columns = min(PANEL, H - h)
                out_TNH[start : start + rows, n, h : h + columns] = edge_TP[:rows, :columns]
            work = take(counter.ctypes.data)
        restore_control(control)
        # an array is freed after its last use, and an address is none: here they still live
        weights_TS[0, 0], halves_TS[0, 0], edge_TP[0, 0], zeros_P[0] = 0, 0, 0, 0
    counter[0] = query_TNW[0, 0, 0] + keys_KPWP[0, 0, 0, 0] + values_KPWP[0, 0, 0, 0]


@kernel
def weigh_blocks(query_TNW, keys_KPWP, first_T, last_T, scale, cap, weights_NTS, threads):  # type: ignore[no-untyped-def]
    """The first half of `attend_blocks` in float32, with the weights for its result."""
    T, N, _ = query_TNW.shape
    blocks, counter = (T + QUERIES - 1) // QUERIES, np.zeros(1, np.int64)
    for _thread in prange(threads):
        scores_TS = np.zeros((QUERIES, keys_KPWP.shape[1] * PANEL), np.float32)
        zeros_P = np.zeros(PANEL, np.float32)
        work = take(counter.ctypes.data)
        while work < N * blocks:
            n, start, rows, first, _last = score_block(
                work, query_TNW, keys_KPWP, first_T, last_T, zeros_P, scores_TS, False
            )
            for t in range(rows):
                begin, end = first_T[start + t], last_T[start + t] + 1
                scores_S, weights_S = scores_TS[t, begin - first : end - first], weights_NTS[n, start + t]
                inverse = softmax(scores_S, scale, cap)
                weights_S[:begin], weights_S[end:] = 0, 0
                read_S = weights_S[begin:end]
                for s in range(read_S.size):
                    read_S[s] = scores_S[s] * inverse
            work = take(counter.ctypes.data)
        scores_TS[0, 0], zeros_P[0] = 0, 0  # as in attend_blocks
    counter[0] = query_TNW[0, 0, 0] + keys_KPWP[0, 0, 0, 0]


@inlined
def fetch_row(stored_SKH, s, k):  # type: ignore[no-untyped-def]
    """Ask for the row of one token and head: rows of a head lie too far apart for the processor to foresee them."""
    row = stored_SKH[s, k]
    for offset in range(0, row.size * row.itemsize, CACHE_LINE):
        prefetch(row.ctypes.data + offset)


@kernel
def attend_one(query_NH, key_SKH, value_SKH, first, last, scale, cap, out_NH, pairs):  # type: ignore[no-untyped-def]
    """A single query: every key and value is read once, where it lies in the cache, one key head a thread."""
    N, K, H = query_NH.shape[0], key_SKH.shape[1], query_NH.shape[1]
    G = N // K
    for k in prange(K):
        query_GH = query_NH[k * G : (k + 1) * G].copy()
        if pairs:
            for g in range(G):
                for h in range(H):
                    query_GH[g, h] = as_float32(bf16_bits(query_GH[g, h]))
        weights_GS = np.empty((G, last + 1 - first), np.float32)
        for s in range(last + 1 - first):
            fetch_row(key_SKH, min(last, first + s + AHEAD), k)
            key_H = key_SKH[first + s, k]
            for g in range(G):
                weights_GS[g, s] = dot(query_GH[g], key_H)
        for g in range(G):
            inverse = softmax(weights_GS[g], scale, cap)
            for s in range(last + 1 - first):
                weight = weights_GS[g, s] * inverse
                weights_GS[g, s] = as_float32(bf16_bits(weight)) if pairs else weight
            out_NH[k * G + g] = 0
        for s in range(last + 1 - first):
            fetch_row(value_SKH, min(last, first + s + AHEAD), k)
            value_H = value_SKH[first + s, k]
            for g in range(G):
                out_H, weight = out_NH[k * G + g], weights_GS[g, s]
                for h in range(H):
                    out_H[h] += weight * as_float32(value_H[h])


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
    ranges = (first_key_T, last_key_T)
    return attend_words(query_TNH, widened_rows(key_SKH), widened_rows(value_SKH), ranges, scale, logit_cap)


def attend_bf16(
    query_TNH: Array,
    key_SKH: Array,
    value_SKH: Array,
    first_key_T: Array,
    last_key_T: Array,
    *,
    scale: float,
    logit_cap: float | None,
) -> Array:
    """The same with queries, keys, values and weights rounded to bf16; keys and values may be stored so."""
    key_SKH, value_SKH = (
        np.ascontiguousarray(array) if array.dtype == np.uint16 else rounded(array) for array in (key_SKH, value_SKH)
    )
    ranges = (first_key_T, last_key_T)
    return attend_words(query_TNH, key_SKH, value_SKH, ranges, scale, logit_cap, pairs=True)


def attend_words(
    query_TNH: Array,
    key_SKH: Array,
    value_SKH: Array,
    ranges: tuple[Array, Array],
    scale: float,
    logit_cap: float | None,
    *,
    pairs: bool = False,
) -> Array:
    """Choose the kernel, and lay the arrays out as it reads them."""
    query_TNH = np.ascontiguousarray(query_TNH, np.float32)
    (T, _, H), (S, K, _) = query_TNH.shape, key_SKH.shape
    cap = np.float32(0.0 if logit_cap is None else logit_cap)
    if T == 1:
        out_TNH = np.empty(query_TNH.shape, np.float32)
        first, last = int(ranges[0][0]), int(ranges[1][0])
        attend_one(query_TNH[0], key_SKH, value_SKH, first, last, np.float32(scale), cap, out_TNH[0], pairs)
        return out_TNH
    if pairs and H % 2:  # two numbers a word
        query_TNH, key_SKH, value_SKH = (
            np.pad(array, ((0, 0), (0, 0), (0, 1))) for array in (query_TNH, key_SKH, value_SKH)
        )
    out_TNH = empty(query_TNH.shape)
    query_words = (rounded(query_TNH) if pairs else query_TNH).view(np.uint32)
    key_words = np.ascontiguousarray(key_SKH).view(np.uint32)
    W, per_word = query_words.shape[2], 2 if pairs else 1
    keys_KPWP = np.zeros((K, -(-S // PANEL), W, PANEL), np.uint32)
    values_KPWP = np.zeros((K, -(-query_TNH.shape[2] // PANEL), -(-S // per_word), PANEL), np.uint32)
    value_words = np.ascontiguousarray(value_SKH)
    pack_heads(key_words, value_words if pairs else value_words.view(np.uint32), keys_KPWP, values_KPWP, pairs)
    attend_blocks(query_words, keys_KPWP, values_KPWP, *ranges, np.float32(scale), cap, out_TNH, pairs, num_threads())
    return out_TNH[..., :H]


def attention_weights(
    query_TNH: Array,
    key_SKH: Array,
    first_key_T: Array,
    last_key_T: Array,
    *,
    scale: float,
    logit_cap: float | None,
) -> Array:
    """What `attend` weighs the values with, `weights_NTS` float32, for taps; see model/ops.py, attention_weights."""
    query_words = np.ascontiguousarray(query_TNH, np.float32).view(np.uint32)
    key_words = widened_rows(key_SKH).view(np.uint32)
    (T, N, W), (S, K, _) = query_words.shape, key_words.shape
    keys_KPWP = np.zeros((K, -(-S // PANEL), W, PANEL), np.uint32)
    no_values_KPWP = np.zeros((K, 0, S, PANEL), np.uint32)
    pack_heads(key_words, key_words, keys_KPWP, no_values_KPWP, False)
    weights_NTS = np.empty((N, T, S), np.float32)
    cap = np.float32(0.0 if logit_cap is None else logit_cap)
    weigh_blocks(query_words, keys_KPWP, first_key_T, last_key_T, np.float32(scale), cap, weights_NTS, num_threads())
    return weights_NTS


def widened_rows(stored: Array) -> Array:
    """Keys or values as float32."""
    return widened(stored) if stored.dtype == np.uint16 else np.ascontiguousarray(stored, np.float32)
