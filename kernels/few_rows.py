"""A few rows times stored bf16 matrices (decoding), at the speed of the memory.

Every stored row is read once, in order, and multiplied with all inputs while it is in registers.
All that counts is that no thread waits: matrices that read the same rows are one piece of work (matrices.py).
"""

import numpy as np
from numba import prange

from pg2ref.kernels.compiling import inlined, kernel, num_threads
from pg2ref.kernels.matrices import MOST, are_alike, as_tuple, next_share
from pg2ref.kernels.simd.cpu import cpu
from pg2ref.kernels.simd.dots import LONG_ROWS, STRETCH, TURN, make_dots, make_long_dots
from pg2ref.kernels.simd.machine import flush_denormals, restore_control
from pg2ref.kernels.stored import Array, bf16_bits

FEW_ROWS = 16
SHARE = 72 * 1024  # stored weights that a thread takes at a time: 4 microseconds of reading
LONG = 6144  # inputs, from which on rows are read side by side

dots_three, dots_two, dots_one = (make_dots(cpu(), rows, bf16_inputs=False) for rows in (3, 2, 1))
pair_dots_three, pair_dots_two, pair_dots_one = (make_dots(cpu(), rows, bf16_inputs=True) for rows in (3, 2, 1))
long_dots, long_pair_dots = make_long_dots(cpu(), bf16_inputs=False), make_long_dots(cpu(), bf16_inputs=True)


@inlined
def lay_out(x_TD, is_bf16):  # type: ignore[no-untyped-def]
    """The inputs as the products read them: bf16 rows, or float32 ones, even numbers first, odd ones behind."""
    T, D = x_TD.shape
    words_TW = np.empty((T, D // 2 if is_bf16 else D), np.uint32)
    for t in range(T):
        if is_bf16:
            halves = words_TW[t].view(np.uint16)
            for d in range(D):
                halves[d] = bf16_bits(x_TD[t, d])
        else:
            numbers = words_TW[t].view(np.float32)
            for d in range(D // 2):
                numbers[d] = x_TD[t, 2 * d]
                numbers[D // 2 + d] = x_TD[t, 2 * d + 1]
    return words_TW


@inlined
def multiply_row(row, D, x, T, out, out_stride, is_bf16):  # type: ignore[no-untyped-def]
    """One stored row times all inputs; `out` is the first one's place. Strides are in bytes."""
    turns, stride, odd = np.int64(D // TURN), np.int64(D * (2 if is_bf16 else 4)), np.int64(D * 2)
    t = 0
    while t + 3 <= T:
        if is_bf16:
            pair_dots_three(row, turns, x + t * stride, stride, odd, out + t * out_stride, out_stride)
        else:
            dots_three(row, turns, x + t * stride, stride, odd, out + t * out_stride, out_stride)
        t += 3
    if t + 2 == T:
        if is_bf16:
            pair_dots_two(row, turns, x + t * stride, stride, odd, out + t * out_stride, out_stride)
        else:
            dots_two(row, turns, x + t * stride, stride, odd, out + t * out_stride, out_stride)
    elif t + 1 == T:
        if is_bf16:
            pair_dots_one(row, turns, x + t * stride, stride, odd, out + t * out_stride, out_stride)
        else:
            dots_one(row, turns, x + t * stride, stride, odd, out + t * out_stride, out_stride)


@kernel
def few_rows(x_TD, is_bf16, weights, outs, count, threads):  # type: ignore[no-untyped-def]
    """out_TO = x_TD @ weight_OD.T for the first `count` of the MOST weights and outs."""
    T, D = x_TD.shape
    words_TW, counter = lay_out(x_TD, is_bf16), np.zeros(1, np.int64)
    at_once = max(LONG_ROWS, SHARE // D // LONG_ROWS * LONG_ROWS)
    is_long = D >= LONG and D % (STRETCH * TURN) == 0
    weights_M, outs_M, outputs_M, shares_M = np.empty((4, MOST), np.int64)
    for m in range(count):
        weights_M[m], outs_M[m], outputs_M[m] = weights[m].ctypes.data, outs[m].ctypes.data, weights[m].shape[0]
        shares_M[m] = (outputs_M[m] + at_once - 1) // at_once
    for _thread in prange(threads):
        control = flush_denormals(np.int64(is_bf16))
        m, share = next_share(counter.ctypes.data, shares_M, count)
        while m < count:
            start = share * at_once
            stride = outputs_M[m] * 4
            stop, o, x = min(outputs_M[m], start + at_once), start, words_TW.ctypes.data
            while T == 1 and is_long and o + LONG_ROWS <= stop:
                row, out = weights_M[m] + o * D * 2, outs_M[m] + o * 4
                if is_bf16:
                    long_pair_dots(row, np.int64(D * 2), np.int64(D // (STRETCH * TURN)), x, np.int64(D * 2), out)
                else:
                    long_dots(row, np.int64(D * 2), np.int64(D // (STRETCH * TURN)), x, np.int64(D * 2), out)
                o += LONG_ROWS
            while o < stop:
                multiply_row(weights_M[m] + o * D * 2, D, x, T, outs_M[m] + o * 4, stride, is_bf16)
                o += 1
            m, share = next_share(counter.ctypes.data, shares_M, count)
        restore_control(control)
    counter[0] = words_TW[0, 0]  # an array is freed after its last use, and an address is none: here it still lives


def linear_few(x_TD: Array, weights: list[Array], *, is_bf16: bool) -> list[Array]:
    """The same rows times each of some bf16 matrices."""
    if not are_alike(weights):
        return [linear_few(x_TD, [weight_OD], is_bf16=is_bf16)[0] for weight_OD in weights]
    outs = [np.empty((len(x_TD), len(weight_OD)), np.float32) for weight_OD in weights]
    for start in range(0, len(weights), MOST):
        some, places = weights[start : start + MOST], outs[start : start + MOST]
        few_rows(x_TD, is_bf16, as_tuple(some), as_tuple(places), len(some), num_threads())
    return outs
