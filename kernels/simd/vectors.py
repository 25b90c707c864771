"""Values in vector registers, written as LLVM IR that Numba inlines.

Numba vectorises plain loops by itself, but not across a register tile, where a sum must stay in a register while
others are added to. The functions of this folder make an `@intrinsic` each: called from `@njit` code with addresses
(int64), it becomes a loop with a fixed number of vectors, all of them in registers.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from pg2ref.kernels.simd.cpu import IS_X86, Cpu

F64, F32 = ir.DoubleType(), ir.FloatType()
I64, I32, I16, I8 = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8)

# Numba gives an instruction without flags those of its function, `contract` too, and a product and a sum then become
# one where the processor can. This flag means something to divisions alone.
AS_WRITTEN = ("arcp",)


def call_apart(builder: Any, name: str, write: Callable[[Any, Sequence[Any]], None], arguments: Sequence[Any]) -> None:
    """Call what `write(builder, arguments)` writes, as a function of its own: no other code shares its registers.

    A kernel that holds several tiles beside each other, each of as many sums as there are registers, would keep sums
    in memory: on 16 registers that made the tile 1.4 times as slow.
    """
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    if function.is_declaration:
        function.linkage = "internal"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block())
        write(inside, function.args)
        inside.ret_void()
    builder.call(function, arguments)


class Emitter:
    """Writes vector code with an LLVM builder. LLVM splits vectors of more lanes than the processor has."""

    def __init__(self, builder: Any, cpu: Cpu, lanes: int | None = None) -> None:
        self.builder, self.cpu = builder, cpu
        self.lanes = lanes or cpu.lanes
        self.vector = ir.VectorType(F32, self.lanes)
        self.integers = ir.VectorType(I32, self.lanes)
        self.shorts = ir.VectorType(I16, 2 * self.lanes)
        self.bytes = ir.VectorType(I8, 4 * self.lanes)

    def address(self, base: Any, *offsets: Any) -> Any:
        """An integer address, moved by byte offsets."""
        for offset in offsets:
            base = self.builder.add(base, offset if isinstance(offset, ir.Value) else I64(offset))
        return base

    def rows(self, base: Any, stride: Any, count: int) -> list[Any]:
        """Addresses of `count` rows."""
        return [self.address(base, self.builder.mul(stride, I64(r))) for r in range(count)]

    def load(self, address: Any, kind: Any) -> Any:
        """A value of any type at an address of any alignment."""
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = 1
        return value

    def store(self, value: Any, address: Any) -> None:
        """Write a value at an address of any alignment."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer())).align = 1

    def number(self, value: float) -> Any:
        """A float32 vector of one constant."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def integer(self, value: int) -> Any:
        """An int32 vector of one constant."""
        return ir.Constant(self.integers, [value] * self.lanes)

    def splat(self, number: Any) -> Any:
        """A vector that holds one number in every lane."""
        undefined = ir.Constant(ir.VectorType(number.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, number, I32(0))
        return self.builder.shuffle_vector(first, undefined, self.integer(0))

    def call(self, name: str, *arguments: Any) -> Any:
        """An LLVM intrinsic whose result has the type of its first argument."""
        kind = ir.FunctionType(arguments[0].type, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def add(self, a: Any, b: Any) -> Any:
        """A + b, in the order that is written."""
        return self.builder.fadd(a, b, flags=AS_WRITTEN)

    def subtract(self, a: Any, b: Any) -> Any:
        """A - b."""
        return self.builder.fsub(a, b, flags=AS_WRITTEN)

    def multiply(self, a: Any, b: Any) -> Any:
        """A * b, rounded before anything is added to it."""
        return self.builder.fmul(a, b, flags=AS_WRITTEN)

    def multiply_add(self, a: Any, b: Any, total: Any) -> Any:
        """A * b + total: one rounding where the processor fuses it, two where it does not."""
        return self.call(f"llvm.{'fma' if self.cpu.fused else 'fmuladd'}.v{self.lanes}f32", a, b, total)

    def multiply_add_by_doubles(self, a: Any, b: Any, total: Any) -> Any:
        """A * b + total with the one rounding of a fused instruction, where there is none, for a and b that were bf16.

        In float32 their product would be exact too, but for those below 2 ** -126 and above 2 ** 128, which may well
        be part of a sum that is neither. In float64 it is exact: 16 bits, and exponents to spare. The sum is rounded
        to 53 bits and then to 24, which is as good as once: 53 >= 2 * 24 + 2 (Figueroa, ACM SIGNUM 30(3), 1995).
        """
        doubles = ir.VectorType(F64, self.lanes)
        a, b, total = (self.builder.fpext(value, doubles) for value in (a, b, total))
        return self.builder.fptrunc(self.add(self.multiply(a, b), total), self.vector)

    def widen(self, bits: Any) -> Any:
        """bf16 bits (a vector of int16) as float32: the upper half of the word."""
        words = self.builder.zext(bits, self.integers)
        return self.builder.bitcast(self.builder.shl(words, self.integer(16)), self.vector)

    def even_and_odd(self, words: Any) -> tuple[Any, Any]:
        """Two bf16 numbers a word, as two float32 vectors: of the lower halves and of the upper ones."""
        even = self.builder.bitcast(self.builder.shl(words, self.integer(16)), self.vector)
        return even, self.builder.bitcast(self.builder.and_(words, self.integer(-65536)), self.vector)

    def multiply_bytes(self, codes: Any, numbers: Any) -> Any:
        """Unsigned bytes of words times signed ones, two products side by side added to an int16 (VPMADDUBSW).

        It must hold them.
        """
        builder = self.builder
        if self.has_bytes():
            name = "avx2.pmadd.ub.sw" if self.cpu.lanes == 8 else "avx512.pmaddubs.w.512"
            return self.in_pieces(name, I8, I16, codes, numbers)
        byte, eight = (ir.Constant(self.shorts, [number] * 2 * self.lanes) for number in (255, 8))
        codes, numbers = (builder.bitcast(words, self.shorts) for words in (codes, numbers))
        even = builder.mul(builder.and_(codes, byte), builder.ashr(builder.shl(numbers, eight), eight))
        return builder.add(even, builder.mul(builder.lshr(codes, eight), builder.ashr(numbers, eight)))

    def add_neighbours(self, shorts: Any) -> Any:
        """Two int16s that lie side by side added to an int32 (VPMADDWD with ones)."""
        if self.has_bytes():
            name = "avx2.pmadd.wd" if self.cpu.lanes == 8 else "avx512.pmaddw.d.512"
            return self.in_pieces(name, I16, I32, shorts, ir.Constant(self.shorts, [1] * 2 * self.lanes))
        words, half = self.builder.bitcast(shorts, self.integers), self.integer(16)
        return self.builder.add(self.builder.ashr(self.builder.shl(words, half), half), self.builder.ashr(words, half))

    def with_signs(self, numbers: Any, signs: Any) -> Any:
        """The signed bytes of words, negated where those of `signs` are negative; of -128 the bits stay, 128 unsigned.

        VPSIGNB gives 0 where a sign is 0: harmless, as what follows is a product with its magnitude.
        """
        if self.has_bytes() and self.cpu.lanes == 8:
            return self.builder.bitcast(self.in_pieces("avx2.psign.b", I8, I8, numbers, signs), self.integers)
        numbers, signs = (self.builder.bitcast(words, self.bytes) for words in (numbers, signs))
        nothing = ir.Constant(self.bytes, None)
        negative = self.builder.icmp_signed("<", signs, nothing)
        signed = self.builder.select(negative, self.builder.sub(nothing, numbers), numbers)
        return self.builder.bitcast(signed, self.integers)

    def has_bytes(self) -> bool:
        """Whether the processor has instructions for vectors of bytes."""
        return IS_X86 and self.cpu.lanes >= 8

    def in_pieces(self, name: str, operand: Any, result: Any, *vectors: Any) -> Any:
        """An instruction of x86 for integers of some type and result, on vectors that may be longer than it takes."""
        kinds = [ir.VectorType(kind, 32 * self.cpu.lanes // kind.width) for kind in (operand, result)]
        kind = ir.FunctionType(kinds[1], [kinds[0]] * len(vectors))
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}")
        pieces = zip(*(self.pieces(vector, kinds[0]) for vector in vectors), strict=True)
        return self.joined([self.builder.call(function, some) for some in pieces])

    def pieces(self, vector: Any, kind: Any) -> list[Any]:
        """A vector cut into shorter ones of some type."""
        whole = ir.VectorType(kind.element, 32 * self.lanes // kind.element.width)
        vector, undefined = self.builder.bitcast(vector, whole), ir.Constant(whole, ir.Undefined)
        places = [list(range(start, start + kind.count)) for start in range(0, whole.count, kind.count)]
        masks = [ir.Constant(ir.VectorType(I32, kind.count), place) for place in places]
        return [self.builder.shuffle_vector(vector, undefined, mask) for mask in masks]

    def joined(self, vectors: list[Any]) -> Any:
        """Vectors, as many as a power of two, one behind the other."""
        while len(vectors) > 1:
            order = ir.VectorType(I32, 2 * vectors[0].type.count)
            mask = ir.Constant(order, list(range(order.count)))
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self.builder.shuffle_vector(a, b, mask) for a, b in pairs]
        return vectors[0]

    def total(self, vector: Any) -> Any:
        """The sum of the lanes, folded in halves: always in the same order."""
        lanes, undefined = self.lanes, ir.Constant(vector.type, ir.Undefined)
        while lanes > 1:
            lanes //= 2
            order = [lane + lanes if lane < lanes else lane for lane in range(self.lanes)]
            other = self.builder.shuffle_vector(vector, undefined, ir.Constant(self.integers, order))
            vector = self.add(vector, other)
        return self.builder.extract_element(vector, I32(0))

    def start_sums(self, sums: list[Any], places: list[Any], fresh: Any) -> None:
        """Let sums begin at 0 where the int64 `fresh` is not, else at what lies at their places."""
        with self.builder.if_else(self.builder.icmp_signed("!=", fresh, I64(0))) as (start, resume):
            with start:
                for total in sums:
                    self.builder.store(self.number(0.0), total)
            with resume:
                for total, place in zip(sums, places, strict=True):
                    self.builder.store(self.load(place, self.vector), total)

    def total_of(self, variables: list[Any]) -> Any:
        """The sum of the lanes of some variables, as many as a power of two, always in the same order."""
        vectors = [self.builder.load(variable) for variable in variables]
        while len(vectors) > 1:
            vectors = [self.add(a, b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        return self.total(vectors[0])

    def variables(self, count: int, kind: Any = None) -> list[Any]:
        """Variables that hold a vector; LLVM keeps them in registers."""
        return [cgutils.alloca_once(self.builder, kind or self.vector) for _ in range(count)]
