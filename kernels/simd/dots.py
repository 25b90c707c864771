"""One stored row of bf16 weights times a few inputs, for decoding: a row is read once, in order.

Vectors have LANES lanes on every processor, so the order of the sums, and with it every number, is the same on each.
"""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pg2ref.kernels.simd.cpu import Cpu
from pg2ref.kernels.simd.products import BF16_PAIRS
from pg2ref.kernels.simd.vectors import I64, Emitter

LANES = 16
RUN = 4  # vectors of weights in one turn, each with sums of its own
TURN = RUN * LANES * 2  # weights in a turn
STRETCH = 8  # turns
LONG_ROWS = 4


def add_turn(e: Emitter, w: Any, x: Any, odd: Any, offset: Any, sums: Any, *, bf16_inputs: bool) -> None:
    """One turn of a stored row times one of inputs, added to RUN sums."""
    builder, width = e.builder, 4 * LANES
    for u, total in enumerate(sums):
        words, place = e.load(e.address(w, offset, u * width), e.integers), e.address(x, offset, u * width)
        value = builder.load(total)
        if bf16_inputs:
            inputs = BF16_PAIRS.parts(e, e.load(place, e.integers))
            value = BF16_PAIRS.add(e, value, BF16_PAIRS.parts(e, words), inputs)
        else:
            even, uneven = e.even_and_odd(words)
            value = e.multiply_add(even, e.load(place, e.vector), value)
            value = e.multiply_add(uneven, e.load(e.address(place, odd), e.vector), value)
        builder.store(value, total)


def make_dots(cpu: Cpu, rows: int, *, bf16_inputs: bool) -> Any:
    """`dots(w, turns, x, x_stride, odd, out, out_stride)`: out[r] = sum over k of w[k] * x[r, k].

    bf16 inputs lie as the weights do. float32 inputs are split: `x` holds their even numbers and, `odd` bytes on,
    their odd ones, so that a word of two weights needs no shuffle. The sums are added up at the end in an order that
    does not depend on how many rows there are.
    """

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        w, turns, x, x_stride, odd, out, out_stride = arguments
        e, width = Emitter(builder, cpu, LANES), 4 * LANES
        sums = e.variables(rows * RUN)
        for total in sums:
            builder.store(e.number(0.0), total)
        x_rows = e.rows(x, x_stride, rows)
        with cgutils.for_range(builder, turns) as loop:
            offset = builder.mul(loop.index, I64(RUN * width))
            for r, row in enumerate(x_rows):
                add_turn(e, w, row, odd, offset, sums[r * RUN : (r + 1) * RUN], bf16_inputs=bf16_inputs)
        for r, place in enumerate(e.rows(out, out_stride, rows)):
            e.store(e.total_of(sums[r * RUN : (r + 1) * RUN]), place)
        return _context.get_dummy_value()

    @intrinsic
    def dots(typing, w, turns, x, x_stride, odd, out, out_stride):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 7), emit

    return dots


def make_long_dots(cpu: Cpu, *, bf16_inputs: bool) -> Any:
    """`dots(w, w_stride, stretches, x, odd, out)`: LONG_ROWS stored rows times one row of inputs, in stretches.

    Inputs longer than the first cache are thrown out of it by the row that passes through; a stretch is short enough
    to stay until the last of the rows has used it. The sums and their order are those of `make_dots`. Where registers
    hold the sums of one row only, those of the others lie in memory for a stretch.
    """

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        w, w_stride, stretches, x, odd, out = arguments
        e = Emitter(builder, cpu, LANES)
        sums = [e.variables(RUN) for _ in range(LONG_ROWS)]
        for mine in sums:
            for total in mine:
                builder.store(e.number(0.0), total)
        with cgutils.for_range(builder, stretches) as stretch:
            begin = builder.mul(stretch.index, I64(STRETCH * RUN * 4 * LANES))
            for row, mine in zip(e.rows(w, w_stride, LONG_ROWS), sums, strict=True):
                with cgutils.for_range(builder, I64(STRETCH)) as turn:
                    offset = builder.add(begin, builder.mul(turn.index, I64(RUN * 4 * LANES)))
                    add_turn(e, row, x, odd, offset, mine, bf16_inputs=bf16_inputs)
        for r, mine in enumerate(sums):
            e.store(e.total_of(mine), e.address(out, 4 * r))
        return _context.get_dummy_value()

    @intrinsic
    def dots(typing, w, w_stride, stretches, x, odd, out):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 6), emit

    return dots
