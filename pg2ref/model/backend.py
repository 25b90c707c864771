"""The table of operations that the towers are written against: one forward pass, two sets of operations.

Model code receives an `Ops` and never asks which one it has.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from pg2ref.arrays import Array
from pg2ref.errors import UsageError
from pg2ref.model import ops, rope
from pg2ref.policy import BACKENDS, PRECISIONS
from pg2ref.quantized import QuantizedMatrix, Weight


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

REFERENCE_BF16 = REFERENCE._replace(linear=ops.linear_bf16, attend=ops.attend_bf16)


@cache
def fast(precision: str) -> Ops:
    """The kernels of pg2ref.kernels; Numba is imported here, when somebody asks for them."""
    from pg2ref.kernels import attention, elementwise, linear, quantized

    is_bf16 = precision == "bf16"
    plain = linear.linear_bf16 if is_bf16 else linear.linear

    def linear_by_type(x_TD: Array, weight_OD: Weight, bias_O: Array | None = None) -> Array:
        if isinstance(weight_OD, QuantizedMatrix):
            outputs = weight_OD.shape[0]
            return quantized.linear(x_TD, weight_OD.codes, weight_OD.scales, outputs, weight_OD.bits, bias_O)
        return plain(x_TD, weight_OD, bias_O)

    return Ops(
        linear=linear_by_type,
        rms_norm=elementwise.rms_norm,
        layer_norm=elementwise.layer_norm,
        gelu=elementwise.gelu,
        gated_gelu=elementwise.gated_gelu,
        soft_cap=elementwise.soft_cap,
        rotate=elementwise.rotate,
        attend=attention.attend_bf16 if is_bf16 else attention.attend,
    )


def operations(backend: str, precision: str = "f32") -> Ops:
    """The table by its names on the command line.

    Precisions: `f32`, float32 numbers and sums; `bf16`, the same with the inputs of each linear layer rounded to
    bf16, as a bf16 run of Transformers does; `f64`, the truth, on the reference alone.

    Raises:
        UsageError: there is no such table.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if backend == "numba" and precision == "f64":
        raise UsageError("the kernels compute in float32: give backend numpy with precision f64")
    if backend == "numba":
        return fast(precision)
    return REFERENCE_BF16 if precision == "bf16" else REFERENCE


def has_bf16_dot() -> bool:
    """Whether this processor multiplies pairs of bf16 in one instruction, so that bf16 is faster than float32."""
    from pg2ref.kernels.simd.cpu import cpu

    return cpu().bf16_dot
