"""The largest of a row of numbers: Numba leaves the plain loop scalar, because a NaN would have to be carried along."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from pg2ref.kernels.simd.cpu import cpu
from pg2ref.kernels.simd.vectors import I32, I64, Emitter

LANES = cpu().lanes


def largest_of(numbers: Any) -> Any:
    """The largest of at least one float32 without gaps. Where some are NaN it is NaN or the largest of others."""
    return np.max(numbers)


@intrinsic
def largest_at(typing, numbers, count):  # type: ignore[no-untyped-def]
    """`largest_of` of `count` numbers at an address, LANES at least; the last vector overlaps the one before."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        numbers, count = arguments
        e = Emitter(builder, cpu())
        (largest,) = e.variables(1)
        builder.store(e.load(numbers, e.vector), largest)

        def look_at(place: Any) -> None:
            found, before = e.load(e.address(numbers, builder.mul(place, I64(4))), e.vector), builder.load(largest)
            builder.store(builder.select(builder.fcmp_ordered(">", found, before), found, before), largest)

        with cgutils.for_range(builder, builder.sdiv(count, I64(LANES))) as loop:
            look_at(builder.mul(loop.index, I64(LANES)))
        look_at(builder.sub(count, I64(LANES)))
        vector, lanes, undefined = builder.load(largest), LANES, ir.Constant(e.vector, ir.Undefined)
        while lanes > 1:
            lanes //= 2
            order = [lane + lanes if lane < lanes else lane for lane in range(LANES)]
            other = builder.shuffle_vector(vector, undefined, ir.Constant(e.integers, order))
            vector = builder.select(builder.fcmp_ordered(">", other, vector), other, vector)
        return builder.extract_element(vector, I32(0))

    return types.float32(types.int64, types.int64), emit


@overload(largest_of)
def _largest_of(numbers):  # type: ignore[no-untyped-def]
    def look(numbers):  # type: ignore[no-untyped-def]
        if numbers.size >= LANES:
            return largest_at(numbers.ctypes.data, numbers.size)
        largest = numbers[0]
        for number in numbers[1:]:
            largest = max(largest, number)
        return largest

    return look
