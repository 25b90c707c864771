"""Stored numbers: float32, or bf16 as the upper half of its bits; from one to the other and back."""

from typing import Any, TypeAlias

import numpy as np
from numba import prange, types
from numba.extending import overload

from pg2ref.kernels.compiling import inlined, kernel, run

Array: TypeAlias = np.ndarray[Any, Any]


@inlined
def bf16_bits(value):  # type: ignore[no-untyped-def]
    """A float32 rounded to the nearest bf16, ties to even; the upper half of its bits. NaN stays one."""
    bits = np.uint32(np.float32(value).view(np.uint32))
    rounded_up = np.uint32(np.uint64(bits) + np.uint64(0x7FFF) + ((np.uint64(bits) >> np.uint64(16)) & np.uint64(1)))
    quiet = bits | np.uint32(0x400000)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16((quiet if is_nan else rounded_up) >> np.uint32(16))


def as_float32(number: Any) -> Any:
    """A stored number, float32 or the bits of a bf16, as float32."""
    if isinstance(number, np.uint16):
        return np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return number


@overload(as_float32)
def _as_float32(number):  # type: ignore[no-untyped-def]
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: number


@kernel
def round_rows(x_TD, out_TD):  # type: ignore[no-untyped-def]
    """Each number's bf16 bits."""
    for t in prange(x_TD.shape[0]):
        numbers, halves = x_TD[t], out_TD[t]
        for d in range(numbers.size):
            halves[d] = bf16_bits(numbers[d])


def rounded(values: Array) -> Array:
    """Float32 numbers of any shape as bf16 bits."""
    out = np.empty(values.shape, np.uint16)
    if values.size:
        rows = values.shape[0]
        run(round_rows, values.size, np.ascontiguousarray(values, np.float32).reshape(rows, -1), out.reshape(rows, -1))
    return out


def widened(stored: Array) -> Array:
    """A stored array as float32, a copy unless it is."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def readable(stored: Array) -> Array:
    """A small stored array as kernels read it, bf16 bits or float32; a copy where it is neither, or oddly aligned."""
    if stored.dtype == np.uint16 and stored.flags.c_contiguous and stored.flags.aligned:
        return stored
    return np.require(stored if stored.dtype == np.uint16 else widened(stored), requirements="CA")
