"""The table of operations that the towers are written against: one forward pass, two sets of operations.

Model code receives an `Ops` and never asks which one it has.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from pg2ref.adapted import AdaptedMatrix, LinearWeight
from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.errors import UsageError
from pg2ref.model import ops, rope
from pg2ref.policy import BACKENDS, INTEGER_PRECISIONS, PRECISIONS
from pg2ref.quantized import QuantizedMatrix, Weight

Linear = Callable[[Array, Weight, Array | None], Array]
LinearEach = Callable[..., list[Array]]  # as in Ops


class Ops(NamedTuple):
    """Everything that rounds. The signatures are those of the reference functions in ops.py and rope.py.

    Two are made of others, because kernels do them better at once: `linear_each(x_TD, weights, biases)`, several
    linear layers of the same rows, and `gated_linear(x_TD, gate_FD, up_FD)`, GeGLU (arXiv:2002.05202). The last four
    cost little, and all tables but those of rounding.py have the reference's.
    """

    linear: Callable[..., Array]
    linear_each: LinearEach
    gated_linear: Callable[..., Array]
    rms_norm: Callable[..., Array]
    layer_norm: Callable[..., Array]
    gelu: Callable[..., Array]
    soft_cap: Callable[..., Array]
    rotate: Callable[..., Array]
    to_bf16: Callable[[Array], Array]
    attend: Callable[..., Array]
    attention_weights: Callable[..., Array]  # for taps: what `attend` weighs the values with
    rotation_table: Callable[..., tuple[Array, Array]]
    add: Callable[[Array, Array], Array]
    scale: Callable[[Array, float], Array]


def adaptable(stored_each: Callable[..., list[Array]], add_thin: Callable[..., Array]) -> LinearEach:
    """`linear_each` for adapted matrices too, out of one for stored matrices.

    What adapters add is computed beside it by `add_thin`, from rows that are not rounded, whatever the precision.
    """

    def linear_each(
        x_TD: Array, weights: Sequence[LinearWeight], biases: Sequence[Array | None] | None = None
    ) -> list[Array]:
        biases = biases or [None] * len(weights)
        layers = list(zip(weights, biases, strict=True))
        stored = [weight.base if isinstance(weight, AdaptedMatrix) else weight for weight in weights]
        outs = stored_each(
            x_TD, stored, [None if isinstance(weight, AdaptedMatrix) else bias for weight, bias in layers]
        )
        return [
            adapt(x_TD, out_TO, weight, bias) if isinstance(weight, AdaptedMatrix) else out_TO
            for out_TO, (weight, bias) in zip(outs, layers, strict=True)
        ]

    def adapt(x_TD: Array, out_TO: Array, weight: AdaptedMatrix, bias_O: Array | None) -> Array:
        return add_thin(out_TO, x_TD, weight.down_RD, weight.up_RO, weight.gain_O, bias_O)

    return linear_each


def reference(linear: Linear, attend: Callable[..., Array]) -> Ops:
    """The plain NumPy table around one kind of linear layer and of attention."""

    def stored_each(x_TD: Array, weights: Sequence[Weight], biases: Sequence[Array | None]) -> list[Array]:
        return [linear(x_TD, *layer) for layer in zip(weights, biases, strict=True)]

    linear_each = adaptable(stored_each, ops.add_thin)

    def linear_one(x_TD: Array, weight_OD: LinearWeight, bias_O: Array | None = None) -> Array:
        return linear_each(x_TD, [weight_OD], [bias_O])[0]

    def gated_linear(x_TD: Array, gate_FD: LinearWeight, up_FD: LinearWeight) -> Array:
        return ops.gated_gelu(*linear_each(x_TD, [gate_FD, up_FD]))

    return Ops(
        linear=linear_one,
        linear_each=linear_each,
        gated_linear=gated_linear,
        rms_norm=ops.rms_norm,
        layer_norm=ops.layer_norm,
        gelu=ops.gelu,
        soft_cap=ops.soft_cap,
        rotate=rope.rotate,
        to_bf16=f32_to_bf16,
        attend=attend,
        attention_weights=ops.attention_weights,
        rotation_table=rope.rotation_table,
        add=ops.add,
        scale=ops.scale,
    )


REFERENCE = reference(ops.linear, ops.attend)
REFERENCE_BF16 = reference(ops.linear_bf16, ops.attend_bf16)
REFERENCE_INTEGER = reference(ops.linear_integer, ops.attend_bf16)


@cache
def fast(precision: str) -> Ops:
    """The kernels of pg2ref.kernels; Numba is imported here, when somebody asks for them."""
    from pg2ref.kernels import attention, elementwise, linear, quantized, stored, thin

    is_bf16 = precision != "f32"

    def stored_each(x_TD: Array, weights: Sequence[Weight], biases: Sequence[Array | None]) -> list[Array]:
        plain = [weight for weight in weights if not isinstance(weight, QuantizedMatrix)]
        if not plain:
            return quantized.linear_each(x_TD, weights, biases)
        if len(plain) == len(weights):
            return linear.linear_each(x_TD, plain, biases, is_bf16=is_bf16)
        return [linear_one(x_TD, *layer) for layer in zip(weights, biases, strict=True)]

    linear_each = adaptable(stored_each, thin.add_thin)

    def linear_one(x_TD: Array, weight_OD: LinearWeight, bias_O: Array | None = None) -> Array:
        return linear_each(x_TD, [weight_OD], [bias_O])[0]

    def gated_linear(x_TD: Array, gate_FD: LinearWeight, up_FD: LinearWeight) -> Array:
        if isinstance(gate_FD, QuantizedMatrix) and isinstance(up_FD, QuantizedMatrix) and gate_FD.bits == up_FD.bits:
            return quantized.gated_linear(x_TD, gate_FD, up_FD)
        if not isinstance(gate_FD, np.ndarray) or not isinstance(up_FD, np.ndarray):
            return elementwise.gated_gelu(*linear_each(x_TD, [gate_FD, up_FD]))
        return linear.gated_linear(x_TD, gate_FD, up_FD, is_bf16=is_bf16)

    return REFERENCE._replace(  # what is not hot stays NumPy's
        linear=linear_one,
        linear_each=linear_each,
        gated_linear=gated_linear,
        rms_norm=elementwise.rms_norm,
        layer_norm=elementwise.layer_norm,
        gelu=elementwise.gelu,
        soft_cap=elementwise.soft_cap,
        rotate=elementwise.rotate,
        add=elementwise.add,
        to_bf16=stored.rounded,
        attend=attention.attend_bf16 if is_bf16 else attention.attend,
        attention_weights=attention.attention_weights,
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
