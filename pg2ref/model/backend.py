"""The table of operations that the towers are written against: one forward pass, two sets of operations.

Model code receives an `Ops` and never asks which one it has.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from pg2ref.arrays import Array
from pg2ref.errors import UsageError
from pg2ref.model import ops, rope
from pg2ref.policy import BACKENDS


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


@cache
def fast() -> Ops:
    """The kernels of pg2ref.kernels, in float32; Numba is imported here and nowhere else."""
    from pg2ref.kernels import attention, elementwise, linear

    return Ops(
        linear=linear.linear,
        rms_norm=elementwise.rms_norm,
        layer_norm=elementwise.layer_norm,
        gelu=elementwise.gelu,
        gated_gelu=elementwise.gated_gelu,
        soft_cap=elementwise.soft_cap,
        rotate=elementwise.rotate,
        attend=attention.attend,
    )


def operations(backend: str) -> Ops:
    """The table by its name on the command line."""
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    return REFERENCE if backend == "numpy" else fast()
