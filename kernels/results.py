"""Memory for large results that is used again: a page that is new is cleared by the system when it is first touched.

On large images that takes longer than many a kernel: GELU of 18 MB 6 ms instead of 1. The memory of an array goes back
to a pool when nothing refers to the array any more, and the next one of about that size takes it.
"""

from itertools import count
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pg2ref.kernels.simd.machine import CACHE_LINE
from pg2ref.kernels.stored import Array

SMALLEST = 1 << 20  # bytes; below, malloc keeps pages itself
PAGE = 4096
APART = 27 * CACHE_LINE  # from place to place in a page; the 64 cache lines of one come all in turn
MOST_HELD = 256 << 20  # bytes that nobody uses


class Pool:
    """Memory that nobody uses, by size.

    Without a lock, as it may be called whenever an array dies: each step on a list is one that threads cannot divide.
    """

    def __init__(self, most_held: int = MOST_HELD) -> None:
        self.most_held = most_held
        self.free: dict[int, list[Array]] = {}
        self.made = count()

    def take(self, size: int) -> Array:
        """`size` bytes, used before or new."""
        try:
            return self.free.setdefault(size, []).pop()
        except IndexError:
            return self.make(size)

    def make(self, size: int) -> Array:
        """New memory at the beginning of a cache line, in each place of a page in turn.

        malloc puts all of this size at the same place of a page, and the processor takes a load for one of what was
        just stored where the last 12 bits of both addresses are the same.
        """
        slab = np.empty(size + PAGE + CACHE_LINE, np.uint8)
        place = next(self.made) * APART % PAGE
        start = -slab.ctypes.data % CACHE_LINE + place
        return slab[start : start + size]

    def give_back(self, slab: Array) -> None:
        """Keep memory for the next; all that is held is let go first where it would be too much."""
        if slab.size > self.most_held:
            return
        if self.held() + slab.size > self.most_held:
            self.free.clear()
        self.free.setdefault(slab.size, []).append(slab)

    def held(self) -> int:
        """Bytes that nobody uses."""
        return sum(size * len(slabs) for size, slabs in list(self.free.items()))


POOL = Pool()


class Lease:
    """What an array refers to as the owner of its memory; gives it back at the end."""

    slab: Array | None

    def __init__(self, pool: Pool, shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
        self.pool, self.slab = pool, None  # for `__del__`, should there be no memory
        self.slab = pool.take(size)
        data = (self.slab.ctypes.data, False)
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": data}

    def __del__(self) -> None:
        if self.slab is not None:
            self.pool.give_back(self.slab)


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32, pool: Pool = POOL) -> Array:
    """As np.empty, and for large arrays quicker: memory that was used before, at the beginning of a cache line."""
    dtype = np.dtype(dtype)
    size = int(prod(shape)) * dtype.itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    return np.asarray(Lease(pool, shape, dtype, rounded_up(size)))


def rounded_up(size: int) -> int:
    """To four sizes between a power of two and the next, so that prompts of many lengths share memory."""
    step = 1 << max(0, size.bit_length() - 3)
    return -(-size // step) * step
