"""Which kernels lie compiled on the disk, for the sources as they are: the others are compiled at their first use."""

from importlib import import_module
from typing import Any, NamedTuple

from pg2ref.kernels.compiling import Kernel

MODULES = ("attention", "elementwise", "few_rows", "linear", "quantized", "stored")


class Kept(NamedTuple):
    """What the disk cache holds."""

    folder: str | None  # None with NUMBA_DISABLE_JIT=1, which keeps nothing
    ready: int  # kernels that are there, for some types at least
    total: int


def kept_kernels() -> Kept:
    """Look, and compile nothing."""
    compiled: list[Any] = []
    for name in MODULES:
        found = vars(import_module(f"pg2ref.kernels.{name}")).values()
        compiled += [one for one in found if isinstance(one, Kernel) and one not in compiled]
    if not hasattr(compiled[0].parallel, "_cache"):
        return Kept(None, 0, len(compiled))
    ready = sum(is_kept(kernel.parallel) or is_kept(kernel.serial) for kernel in compiled)
    return Kept(compiled[0].parallel._cache.cache_path, ready, len(compiled))


def is_kept(dispatcher: Any) -> bool:
    """Whether some version is on the disk, compiled from these sources by this Numba for this processor."""
    codegen = dispatcher.targetctx.codegen().magic_tuple()
    return any(key[1] == codegen for key in dispatcher._cache._cache_file._load_index())
