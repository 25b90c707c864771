"""The table of operations that the towers are written against: one forward pass, two sets of operations.

Model code receives an `Ops` and never asks which one it has.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from pg2ref.arrays import Array
from pg2ref.errors import UsageError
from pg2ref.model import ops, rope
from pg2ref.policy import BACKENDS, INTEGER_PRECISIONS, PRECISIONS
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
REFERENCE_INTEGER = REFERENCE_BF16._replace(linear=ops.linear_integer)


@cache
def fast(precision: str) -> Ops:
    """The kernels of pg2ref.kernels; Numba is imported here and nowhere else."""
    from pg2ref.kernels import attention, elementwise, linear, quantized

    is_f32 = precision == "f32"
    plain = linear.linear if is_f32 else linear.linear_bf16

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
        attend=attention.attend if is_f32 else attention.attend_bf16,
    )


def operations(backend: str, precision: str = "f32") -> Ops:
    """The table by its names on the command line.

    Precisions: `f32`, float32 numbers and sums; `bf16`, the same with the inputs of each linear layer and of attention
    rounded to bf16, as a bf16 run of Transformers does; `f64`, the truth, on the reference alone. `int8` and `int4` are
    `bf16` but for the quantised matrices of such a checkpoint: their inputs are rounded to int8 in groups of 32, and
    products are integer. The other three take a quantised matrix for what it means, on the reference alone.

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
    return {"f32": REFERENCE, "f64": REFERENCE, "bf16": REFERENCE_BF16}.get(precision, REFERENCE_INTEGER)


def choose_precision(backend: str, precision: str | None, weight_type: str) -> str:
    """The precision for weights of a type, `bf16`, `f32`, `int8` or `int4` say; None asks for the quickest.

    Raises:
        UsageError: such weights cannot be computed with so.
    """
    is_quantized = weight_type in INTEGER_PRECISIONS
    if precision is None:
        if backend == "numba" and is_quantized:
            return weight_type
        return "bf16" if backend == "numba" and weight_type == "bf16" and has_bf16_dot() else "f32"
    if precision in INTEGER_PRECISIONS and precision != weight_type:
        raise UsageError(
            f"precision {precision} is for {precision} weights, these are {weight_type}: leave it out, or make such a "
            f"checkpoint with `pg2ref quantize --to {precision}`"
        )
    if backend == "numba" and is_quantized and precision != weight_type:
        raise UsageError(
            f"the kernels multiply {weight_type} weights in precision {weight_type} alone, not {precision}: leave it "
            "out, or give backend numpy too"
        )
    return precision


def has_bf16_dot() -> bool:
    """Whether this processor multiplies pairs of bf16 in one instruction, so that bf16 is faster than float32."""
    from pg2ref.kernels.simd.cpu import cpu

    return cpu().bf16_dot
