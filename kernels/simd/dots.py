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
            for u in range(RUN):
                words = e.load(e.address(w, offset, u * width), e.integers)
                weights = BF16_PAIRS.parts(e, words) if bf16_inputs else e.even_and_odd(words)
                for r in range(rows):
                    total, place = sums[r * RUN + u], e.address(x_rows[r], offset, u * width)
                    value = builder.load(total)
                    if bf16_inputs:
                        inputs = BF16_PAIRS.parts(e, e.load(place, e.integers))
                        value = BF16_PAIRS.add(e, value, weights, inputs)
                    else:
                        value = e.multiply_add(weights[0], e.load(place, e.vector), value)
                        value = e.multiply_add(weights[1], e.load(e.address(place, odd), e.vector), value)
                    builder.store(value, total)
        for r, place in enumerate(e.rows(out, out_stride, rows)):
            mine = [builder.load(total) for total in sums[r * RUN : (r + 1) * RUN]]
            while len(mine) > 1:
                mine = [builder.fadd(a, b) for a, b in zip(mine[::2], mine[1::2], strict=True)]
            e.store(e.total(mine[0]), place)
        return _context.get_dummy_value()

    @intrinsic
    def dots(typing, w, turns, x, x_stride, odd, out, out_stride):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 7), emit

    return dots
