"""How kernels are compiled and kept: one decorator, one set of fast-math flags, one disk cache that notices changes.

Numba's cache looks at a kernel's own file alone; here a kernel also depends on simd/ and its neighbours, so the
stamp that the cache compares is that of all files of this folder.

A process says once, through the logger `pg2ref.kernels`, that it compiles: silence for seconds looks like a fault.

With NUMBA_DISABLE_JIT=1 nothing is compiled: a kernel is the Python function itself, as a debugger and a coverage tool
want it. Those that call the inner loops of simd/, which no Python function stands for, cannot run so.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

# Read when the OpenMP runtime is loaded. Threads that wait by spinning take the cores from whoever else computes; ones
# that sleep at once are woken 400 times a token. They spin for a tenth of a millisecond, then sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numba
from numba.core import event

# Never nnan or ninf: a NaN must come out as one. Never reassoc or arcp: the code that Numba runs when it has just
# compiled a kernel and the code that it keeps on disk are optimised apart, and LLVM may choose another order in each.
FASTMATH = {"contract", "nsz"}
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}
SMALL = 40_000  # numbers
SOURCES = sorted(Path(__file__).parent.rglob("*.py"))


class Announcement(event.Listener):
    """Hears of every compilation and reports the first; Numba sends nothing when a kernel comes from the disk."""

    made = False

    def on_start(self, event: Any) -> None:
        """Warn once: a warning is shown without any set-up. Others may compile functions of their own."""
        function = getattr(event.data.get("dispatcher"), "py_func", None)
        if not Announcement.made and str(getattr(function, "__module__", "")).startswith("pg2ref."):
            Announcement.made = True
            logging.getLogger("pg2ref.kernels").warning("compiling kernels for this processor, once, some seconds each")

    def on_end(self, event: Any) -> None:
        """Nothing more."""


event.register("numba:compile", Announcement())


def source_stamp() -> tuple[float, int]:
    """Latest change and total size of the kernels' sources, in the form of Numba's own stamp."""
    stats = [path.stat() for path in SOURCES]
    return max(stat.st_mtime for stat in stats), sum(stat.st_size for stat in stats)


class Kernel:
    """A compiled function that spreads `prange` over the threads; compiled on first use and kept on disk.

    GNU OpenMP ends a process that was forked from one in which it had threads. Such a child runs the same function
    without them, compiled a second time.
    """

    pool_process: int | None = None  # the process in which a kernel ran first

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        self.parallel = _kept(numba.njit(parallel=True, **OPTIONS)(function))
        self.serial = _kept(numba.njit(**OPTIONS)(_renamed(function, f"{function.__name__}_serial")))

    def __call__(self, *arguments: Any) -> None:
        """Run it."""
        if was_forked():
            self.serial(*arguments)
        else:
            Kernel.pool_process = os.getpid()
            self.parallel(*arguments)


def was_forked() -> bool:
    """Whether another process, of which this one is a copy, has run a kernel."""
    return Kernel.pool_process not in (None, os.getpid())


def _renamed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A copy under its own name, by which Numba's disk cache tells kernels apart: it does not look at `parallel`."""
    copy = FunctionType(function.__code__, function.__globals__, name)  # type: ignore[attr-defined]
    copy.__qualname__, copy.__module__ = name, function.__module__
    return copy


def kernel(function: Callable[..., Any]) -> Kernel:
    """Make a kernel of a function whose loops over `prange` may run in any order."""
    return Kernel(function)


def _kept(compiled: Any) -> Any:
    if not numba.config.DISABLE_JIT:
        compiled._cache._cache_file._source_stamp = source_stamp()
    return compiled


def inlined(function: Callable[..., Any]) -> Any:
    """A function that kernels call and that becomes part of them."""
    return numba.njit(fastmath=FASTMATH, error_model="numpy")(function)


def run(compiled: Kernel, size: int, *arguments: Any) -> None:
    """Call a kernel with all threads, or with one where it has fewer than SMALL numbers to do.

    Waking the others takes longer than that (2 us alone, 30 to 40 us together).
    """
    if size < SMALL:
        compiled.serial(*arguments)
    else:
        compiled(*arguments)


def num_threads() -> int:
    """Threads that a kernel may use."""
    return 1 if was_forked() else int(numba.get_num_threads())
