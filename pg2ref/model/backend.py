"""The table of operations that the towers are written against: one forward pass, two sets of operations.

Model code receives an `Ops` and never asks which one it has.
"""

from collections.abc import Callable
from typing import NamedTuple

from pg2ref.arrays import Array
from pg2ref.errors import UsageError
from pg2ref.model import ops, rope


class Ops(NamedTuple):
    """Everything hot. The signatures are those of the reference functions in ops.py and rope.py."""

    linear: Callable[..., Array]
    rms_norm: Callable[..., Array]
    layer_norm: Callable[..., Array]
    gelu: Callable[..., Array]
    gated_gelu: Callable[..., Array]
    soft_cap: Callable[..., Array]
    rotate: Callable[..., Array]
    attend: Callable[..., Array]


REFERENCE = Ops(
    linear=ops.linear,
    rms_norm=ops.rms_norm,
    layer_norm=ops.layer_norm,
    gelu=ops.gelu,
    gated_gelu=ops.gated_gelu,
    soft_cap=ops.soft_cap,
    rotate=rope.rotate,
    attend=ops.attend,
)
BACKENDS = ("numpy",)  # "numba" joins when `fast()`, the table of pg2ref.kernels, does


def operations(backend: str) -> Ops:
    """The table by its name on the command line."""
    if backend != "numpy":
        raise UsageError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    return REFERENCE
