"""Several matrices that read the same rows, query, key and value say: one piece of work, in which no thread waits."""

from collections.abc import Sequence
from typing import Any

from pg2ref.kernels.compiling import inlined
from pg2ref.kernels.simd.machine import take
from pg2ref.kernels.stored import Array

MOST = 3  # in one call


@inlined
def next_share(counter, shares_M, count):  # type: ignore[no-untyped-def]
    """The next share of all that nobody has taken: its matrix, and which of the shares of that one it is.

    Threads take one after the other, so that a slow one takes fewer. The matrix is `count` when none is left.
    """
    matrix, share = 0, take(counter)
    while matrix < count and share >= shares_M[matrix]:
        share -= shares_M[matrix]
        matrix += 1
    return matrix, share


def are_alike(arrays: list[Array]) -> bool:
    """Whether Numba takes them for one type: one tuple holds them then. Files and copies differ in their flags."""
    flags = arrays[0].flags
    return all(
        other.flags.writeable == flags.writeable and other.flags.aligned == flags.aligned for other in arrays[1:]
    )


def check_widths(x_TD: Array, weights: Sequence[Any]) -> None:
    """Kernels go by addresses and would read beyond: raises ValueError as NumPy does for its own product."""
    for weight in weights:
        if x_TD.ndim != 2 or x_TD.shape[1] != weight.shape[1]:
            raise ValueError(f"expected rows (T, {weight.shape[1]}) for weights {weight.shape}, got {x_TD.shape}")


def as_tuple(arrays: list[Array]) -> tuple[Array, ...]:
    """MOST arrays, as kernels take tuples of one length; the first stands in for those that there are not."""
    return tuple(arrays + arrays[:1] * (MOST - len(arrays)))
