"""How kernels are compiled and kept: one decorator, one set of fast-math flags, one disk cache that notices changes.

Numba's cache looks at a kernel's own file alone; here a kernel also depends on simd/ and its neighbours, so the
stamp that the cache compares is that of all files of this folder.

A process says once, through the logger `pg2ref.kernels`, that it compiles: silence for seconds looks like a fault.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when the OpenMP runtime is loaded: threads that wait by spinning take the cores from whoever else computes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numba
from numba.core import event

FASTMATH = {"contract", "arcp", "nsz", "reassoc"}  # never nnan or ninf: a NaN must come out as one
SMALL = 40_000
SOURCES = sorted(Path(__file__).parent.rglob("*.py"))


class Announcement(event.Listener):
    """Hears of every compilation and reports the first; Numba sends nothing when a kernel comes from the disk."""

    made = False

    def on_start(self, event: Any) -> None:
        """Warn once: a warning is shown without any set-up."""
        if not Announcement.made:
            Announcement.made = True
            logging.getLogger("pg2ref.kernels").warning("compiling kernels for this processor, once, some seconds each")

    def on_end(self, event: Any) -> None:
        """Nothing more."""


event.register("numba:compile", Announcement())


def source_stamp() -> tuple[float, int]:
    """Latest change and total size of the kernels' sources, in the form of Numba's own stamp."""
    stats = [path.stat() for path in SOURCES]
    return max(stat.st_mtime for stat in stats), sum(stat.st_size for stat in stats)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use, in parallel over `prange`, without the interpreter's lock, and keep it on disk."""
    return _kept(numba.njit(parallel=True, cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")(function))


def _kept(compiled: Any) -> Any:
    compiled._cache._cache_file._source_stamp = source_stamp()
    return compiled


def inlined(function: Callable[..., Any]) -> Any:
    """A function that kernels call and that becomes part of them."""
    return numba.njit(fastmath=FASTMATH, error_model="numpy")(function)


def run(compiled: Any, size: int, *arguments: Any) -> None:
    """Call a kernel with all threads, or with one where it has fewer than SMALL numbers to do.

    Waking the others takes longer than that (2 us alone, 30 to 40 us together).
    """
    threads = numba.get_num_threads()
    if size >= SMALL or threads == 1:
        compiled(*arguments)
        return
    numba.set_num_threads(1)
    try:
        compiled(*arguments)
    finally:
        numba.set_num_threads(threads)


def num_threads() -> int:
    """Threads that a kernel may use."""
    return int(numba.get_num_threads())
