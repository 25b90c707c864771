"""Sums over a row of numbers, in one order on every processor: LANES partial sums, then those, then what is left over.

Numba spreads a plain loop over as many partial sums as the processor's vectors hold, so that its last bits differ from
one processor to another. Each function has a body for Python and, for kernels, one of vectors.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

from pg2ref.kernels.simd.cpu import cpu
from pg2ref.kernels.simd.vectors import F32, F64, I16, I64, Emitter

LANES = 16
RUN = 4  # vectors of products in one turn, each with sums of its own


def sum_of_squares(numbers: Any, centre: float) -> Any:
    """The sum of (number - centre) ** 2, in float64; `numbers` are float32 without gaps."""
    return np.square(np.asarray(numbers, np.float64) - centre).sum()


def sum_of(numbers: Any) -> Any:
    """Their sum, in float64; `numbers` are float32 without gaps."""
    return np.asarray(numbers, np.float64).sum()


def dot(numbers: Any, stored: Any) -> Any:
    """The sum of their products, in float32; `stored` are float32 or the bits of bf16. Both are without gaps."""
    weights = (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored
    return np.float32(np.dot(numbers, weights))


def emit_terms(e: Emitter, numbers: Any, count: Any, term: Any) -> Any:
    """The sum in float64 of `term` of each number, widened: of vectors, then of the rest one by one."""
    builder, doubles = e.builder, ir.VectorType(F64, LANES)
    total, rest = cgutils.alloca_once(builder, doubles), cgutils.alloca_once(builder, F64)
    builder.store(ir.Constant(doubles, [0.0] * LANES), total)
    builder.store(F64(0.0), rest)
    vectors = builder.sdiv(count, I64(LANES))
    with cgutils.for_range(builder, vectors) as loop:
        values = builder.fpext(e.load(e.address(numbers, builder.mul(loop.index, I64(4 * LANES))), e.vector), doubles)
        builder.store(e.add(builder.load(total), term(values)), total)
    with cgutils.for_range(builder, count, builder.mul(vectors, I64(LANES))) as loop:
        value = builder.fpext(e.load(e.address(numbers, builder.mul(loop.index, I64(4))), F32), F64)
        builder.store(e.add(builder.load(rest), term(value)), rest)
    return e.add(e.total(builder.load(total)), builder.load(rest))


@intrinsic
def squares_at(typing, numbers, count, centre):  # type: ignore[no-untyped-def]
    """`sum_of_squares` of `count` numbers at an address."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        numbers, count, centre = arguments
        e = Emitter(builder, cpu(), LANES)
        centres = e.splat(centre)

        def square(values: Any) -> Any:
            apart = e.subtract(values, centre if values.type == F64 else centres)
            return e.multiply(apart, apart)

        return emit_terms(e, numbers, count, square)

    return types.float64(types.int64, types.int64, types.float64), emit


@intrinsic
def sum_at(typing, numbers, count):  # type: ignore[no-untyped-def]
    """`sum_of` of `count` numbers at an address."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return emit_terms(Emitter(builder, cpu(), LANES), *arguments, lambda values: values)

    return types.float64(types.int64, types.int64), emit


def make_dot(*, widened: bool) -> Any:
    """`dot_at(numbers, stored, count)`: `dot` of numbers at two addresses."""
    size = 2 if widened else 4

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        numbers, stored, count = arguments
        e, scalar = Emitter(builder, cpu(), LANES), Emitter(builder, cpu(), 1)
        sums, rest = e.variables(RUN), scalar.variables(1)
        for total in (*sums, *rest):
            builder.store(ir.Constant(total.type.pointee, [0.0] * total.type.pointee.count), total)

        def add_products(by: Emitter, start: Any, totals: list[Any]) -> None:
            for u, total in enumerate(totals):
                at = e.address(start, u * by.lanes)
                place = e.address(stored, builder.mul(at, I64(size)))
                weights = by.load(place, ir.VectorType(I16, by.lanes) if widened else by.vector)
                values = by.load(e.address(numbers, builder.mul(at, I64(4))), by.vector)
                weights = by.widen(weights) if widened else weights
                builder.store(by.multiply_add(values, weights, builder.load(total)), total)

        start = I64(0)
        for by, totals in ((e, sums), (e, sums[:1]), (scalar, rest)):
            step = by.lanes * len(totals)
            turns = builder.sdiv(builder.sub(count, start), I64(step))
            with cgutils.for_range(builder, turns) as loop:
                add_products(by, e.address(start, builder.mul(loop.index, I64(step))), totals)
            start = e.address(start, builder.mul(turns, I64(step)))
        return e.add(e.total_of(sums), scalar.total(builder.load(rest[0])))

    @intrinsic
    def dot_at(typing, numbers, stored, count):  # type: ignore[no-untyped-def]
        return types.float32(*[types.int64] * 3), emit

    return dot_at


float_dot_at, bf16_dot_at = make_dot(widened=False), make_dot(widened=True)


def check_row(array: Any, *kinds: Any) -> None:
    """What is read from an address has to lie there, one number behind the other."""
    if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype in kinds):
        raise TypingError(f"expected a row without gaps of {' or '.join(map(str, kinds))}, got {array}")


@overload(sum_of_squares)
def _sum_of_squares(numbers, centre):  # type: ignore[no-untyped-def]
    check_row(numbers, types.float32)
    return lambda numbers, centre: squares_at(numbers.ctypes.data, numbers.size, np.float64(centre))


@overload(sum_of)
def _sum_of(numbers):  # type: ignore[no-untyped-def]
    check_row(numbers, types.float32)
    return lambda numbers: sum_at(numbers.ctypes.data, numbers.size)


@overload(dot)
def _dot(numbers, stored):  # type: ignore[no-untyped-def]
    check_row(numbers, types.float32)
    check_row(stored, types.float32, types.uint16)
    if stored.dtype == types.uint16:
        return lambda numbers, stored: bf16_dot_at(numbers.ctypes.data, stored.ctypes.data, numbers.size)
    return lambda numbers, stored: float_dot_at(numbers.ctypes.data, stored.ctypes.data, numbers.size)
