"""The three inner loops where registers decide the speed, as LLVM IR that Numba inlines.

Numba vectorises plain loops by itself, but not across a register tile, where a sum must stay in a register while
others are added to. Each function here makes an `@intrinsic`: called from `@njit` code with addresses (int64), it
becomes a loop with a fixed number of vectors, all of them in registers. The vectors are as wide as cpu.py says; the
IR itself runs on any processor.

    tile         out[r, o] (+)= sum over k of x[r, k] * panel[k, o]           some rows times a panel of outputs
    transpose    panel[k, o] = w[o, k]                                        a square of bf16 or float32 weights
    dots         out[r] = sum over k of w[k] * x[r, k]                        one stored row times a few inputs
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pg2ref.kernels.cpu import Cpu

F32, I64, I32, I16, I8 = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8)
VECTORS = 2  # of outputs in a tile: two loads feed as many multiply-adds as there are rows, twice
RUN = 2  # pairs of vectors of weights that `dots` takes in one turn
Emit = Callable[..., Any]


class Emitter:
    """Writes vector code for one processor path with an LLVM builder."""

    def __init__(self, builder: Any, cpu: Cpu) -> None:
        self.builder, self.cpu = builder, cpu
        self.vector = ir.VectorType(F32, cpu.lanes)
        self.integers = ir.VectorType(I32, cpu.lanes)

    def address(self, base: Any, *offsets: Any) -> Any:
        """An integer address, moved by byte offsets."""
        for offset in offsets:
            base = self.builder.add(base, offset if isinstance(offset, ir.Value) else I64(offset))
        return base

    def load(self, address: Any, kind: Any) -> Any:
        """A value of any type at an address of any alignment."""
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = 1
        return value

    def store(self, value: Any, address: Any) -> None:
        """Write a value at an address of any alignment."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer())).align = 1

    def zero(self) -> Any:
        """A vector of zeros."""
        return ir.Constant(self.vector, [0.0] * self.cpu.lanes)

    def splat(self, number: Any) -> Any:
        """A vector that holds one number in every lane."""
        undefined = ir.Constant(ir.VectorType(number.type, self.cpu.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, number, I32(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(self.integers, [0] * self.cpu.lanes))

    def multiply_add(self, a: Any, b: Any, total: Any) -> Any:
        """A * b + total: one rounding where the processor fuses it, two where it does not."""
        name = "llvm.fma" if self.cpu.fused else "llvm.fmuladd"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"{name}.v{self.cpu.lanes}f32")
        return self.builder.call(function, [a, b, total])

    def widen(self, bits: Any) -> Any:
        """bf16 bits (a vector of int16) as float32: the upper half of the word."""
        words = self.builder.zext(bits, self.integers)
        return self.builder.bitcast(self.builder.shl(words, self.sixteen()), self.vector)

    def sixteen(self) -> Any:
        """A vector of the number 16."""
        return ir.Constant(self.integers, [16] * self.cpu.lanes)

    def even_and_odd(self, words: Any) -> tuple[Any, Any]:
        """Two bf16 numbers a word, as two vectors: of the lower halves and of the upper ones."""
        upper = ir.Constant(self.integers, [-65536] * self.cpu.lanes)
        even = self.builder.bitcast(self.builder.shl(words, self.sixteen()), self.vector)
        return even, self.builder.bitcast(self.builder.and_(words, upper), self.vector)

    def total(self, vector: Any) -> Any:
        """The sum of the lanes, folded in halves: always in the same order."""
        lanes = self.cpu.lanes
        undefined = ir.Constant(self.vector, ir.Undefined)
        while lanes > 1:
            lanes //= 2
            order = [lane + lanes if lane < lanes else lane for lane in range(self.cpu.lanes)]
            other = self.builder.shuffle_vector(vector, undefined, ir.Constant(self.integers, order))
            vector = self.builder.fadd(vector, other)
        return self.builder.extract_element(vector, I32(0))

    def variables(self, count: int) -> list[Any]:
        """Variables that hold a vector; LLVM keeps them in registers."""
        return [cgutils.alloca_once(self.builder, self.vector) for _ in range(count)]


def make_tile(cpu: Cpu, rows: int) -> Any:
    """`tile(x, x_stride, panel, panel_stride, steps, out, out_stride, fresh)`: strides in bytes.

    Adds to what `out` holds, unless `fresh`. Each output is one chain of multiply-adds in the order of k, whatever
    the blocking, so splitting k into several calls changes nothing.
    """

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x, x_stride, panel, panel_stride, steps, out, out_stride, fresh = arguments
        e, width = Emitter(builder, cpu), 4 * cpu.lanes
        sums = e.variables(rows * VECTORS)
        x_rows = [e.address(x, builder.mul(x_stride, I64(r))) for r in range(rows)]
        places = [
            e.address(out, builder.mul(out_stride, I64(r)), v * width) for r in range(rows) for v in range(VECTORS)
        ]
        with builder.if_else(builder.icmp_signed("!=", fresh, I64(0))) as (start, resume):
            with start:
                for total in sums:
                    builder.store(e.zero(), total)
            with resume:
                for total, place in zip(sums, places, strict=True):
                    builder.store(e.load(place, e.vector), total)
        with cgutils.for_range(builder, steps) as loop:
            outputs = e.address(panel, builder.mul(loop.index, panel_stride))
            weights = [e.load(e.address(outputs, v * width), e.vector) for v in range(VECTORS)]
            offset = builder.mul(loop.index, I64(4))
            for r in range(rows):
                number = e.splat(e.load(e.address(x_rows[r], offset), F32))
                for v in range(VECTORS):
                    total = sums[r * VECTORS + v]
                    builder.store(e.multiply_add(number, weights[v], builder.load(total)), total)
        for total, place in zip(sums, places, strict=True):
            e.store(builder.load(total), place)
        return _context.get_dummy_value()

    @intrinsic
    def tile(typing, x, x_stride, panel, panel_stride, steps, out, out_stride, fresh):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 8), emit

    return tile


def make_transpose(cpu: Cpu, *, bf16: bool) -> Any:
    """`transpose(w, w_stride, panel, panel_stride)`: a square of `lanes` rows and columns, widened to float32."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        w, w_stride, panel, panel_stride = arguments
        e, lanes = Emitter(builder, cpu), cpu.lanes
        rows = []
        for r in range(lanes):
            address = e.address(w, builder.mul(w_stride, I64(r)))
            stored = e.load(address, ir.VectorType(I16, lanes) if bf16 else e.vector)
            rows.append(e.widen(stored) if bf16 else stored)
        half = 1
        while half < lanes:  # exchange blocks of 1, 2, 4 ... lanes between rows that far apart
            for r in range(lanes):
                if not r & half:
                    low, high = rows[r], rows[r + half]
                    first = [c if not c & half else c - half + lanes for c in range(lanes)]
                    second = [c + half if not c & half else c + lanes for c in range(lanes)]
                    rows[r] = builder.shuffle_vector(low, high, ir.Constant(e.integers, first))
                    rows[r + half] = builder.shuffle_vector(low, high, ir.Constant(e.integers, second))
            half *= 2
        for k in range(lanes):
            e.store(rows[k], e.address(panel, builder.mul(panel_stride, I64(k))))
        return _context.get_dummy_value()

    @intrinsic
    def transpose(typing, w, w_stride, panel, panel_stride):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 4), emit

    return transpose


def make_dots(cpu: Cpu, rows: int) -> Any:
    """`dots(w, turns, x, x_stride, odd, out, out_stride)`: one row of bf16 weights times `rows` inputs.

    `x` holds the inputs' even numbers and, `odd` bytes on, their odd ones, so that a word of two weights needs no
    shuffle. A turn takes RUN * 2 * lanes weights; each row has RUN * 2 sums of its own, added up at the end in an
    order that does not depend on how many rows there are.
    """

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        w, turns, x, x_stride, odd, out, out_stride = arguments
        e, width = Emitter(builder, cpu), 4 * cpu.lanes
        sums = e.variables(rows * RUN * 2)
        for total in sums:
            builder.store(e.zero(), total)
        with cgutils.for_range(builder, turns) as loop:
            offset = builder.mul(loop.index, I64(RUN * width))
            for u in range(RUN):
                weights = e.even_and_odd(e.load(e.address(w, offset, u * width), e.integers))
                for r in range(rows):
                    even_x = e.address(x, builder.mul(x_stride, I64(r)), offset, u * width)
                    for parity, place in enumerate((even_x, e.address(even_x, odd))):
                        total = sums[(r * RUN + u) * 2 + parity]
                        value = e.multiply_add(weights[parity], e.load(place, e.vector), builder.load(total))
                        builder.store(value, total)
        for r in range(rows):
            mine = [builder.load(total) for total in sums[r * RUN * 2 : (r + 1) * RUN * 2]]
            while len(mine) > 1:
                mine = [builder.fadd(a, b) for a, b in zip(mine[::2], mine[1::2], strict=True)]
            e.store(e.total(mine[0]), e.address(out, builder.mul(out_stride, I64(r))))
        return _context.get_dummy_value()

    @intrinsic
    def dots(typing, w, turns, x, x_stride, odd, out, out_stride):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 7), emit

    return dots
