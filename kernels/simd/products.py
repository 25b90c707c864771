"""How one 32-bit word of weights is multiplied with one of inputs: a float32, two bf16, or four int8.

A tile is the same loop for all of them; only the instruction in its middle differs. Where the processor lacks the
instruction, others do the same arithmetic, so that the numbers that come out are equal on every path: products of two
int8 are exact in int32; a product of two bf16 and its addition are rounded once, denormals counting as zero.
"""

from typing import Any, Protocol

from llvmlite import ir

from pg2ref.kernels.simd.cpu import IS_X86, Cpu
from pg2ref.kernels.simd.vectors import F32, I32, Emitter

Parts = tuple[Any, ...]


class Product(Protocol):
    """`parts` is what one loaded vector of words becomes, once; `add` is done for every pair."""

    word: Any  # the LLVM type of a word

    def parts(self, e: Emitter, words: Any) -> Parts:
        """A vector of words, ready to be multiplied."""

    def add(self, e: Emitter, total: Any, weights: Parts, inputs: Parts) -> Any:
        """The total and the products of one vector of weights and one of inputs."""


class Float32:
    """One float32 a word."""

    word = F32

    def parts(self, e: Emitter, words: Any) -> Parts:
        """As they are."""
        return (words,)

    def add(self, e: Emitter, total: Any, weights: Parts, inputs: Parts) -> Any:
        """A fused multiply-add."""
        return e.multiply_add(inputs[0], weights[0], total)


class Bf16Pairs:
    """Two bf16 a word, summed in float32: first the upper product is added, then the lower one (VDPBF16PS)."""

    word = I32

    def parts(self, e: Emitter, words: Any) -> Parts:
        """The words where the instruction exists, else both halves as float32."""
        return (words,) if e.cpu.bf16_dot else e.even_and_odd(words)

    def add(self, e: Emitter, total: Any, weights: Parts, inputs: Parts) -> Any:
        """Intel's Software Developer's Manual, VDPBF16PS: no rounding mode, denormals count as zero.

        Processors other than x86 do not flush: nothing is promised there for numbers as small as that.
        """
        if e.cpu.bf16_dot:
            return e.call("llvm.x86.avx512bf16.dpbf16ps.512", total, weights[0], inputs[0])
        multiply_add = e.multiply_add if e.cpu.fused or not IS_X86 else e.multiply_add_by_doubles
        for half in (1, 0):
            total = multiply_add(inputs[half], weights[half], total)
        return total


class Int8Quads:
    """Four unsigned weights and four signed inputs a word, summed in int32 over a group (VPDPBUSD).

    Without the instruction a weight of eight bits is two of four, each in a plane with sums of its own. A product of
    four bits and an int8 is so small that a group's sums fit an int16 lane: 16 * 15 * 128 = 30,720 < 2 ** 15.
    """

    def planes(self, bits: int, cpu: Cpu) -> int:
        """How many products a word of codes needs."""
        return 1 if cpu.int8_dot or bits == 4 else 2

    def in_turn(self, cpu: Cpu, rows: int) -> list[tuple[int, int]]:
        """The order for two words and some rows: (word, row). Where a word's products are added, rows come first."""
        if cpu.int8_dot:
            return [(word, row) for word in range(2) for row in range(rows)]
        return [(word, row) for row in range(rows) for word in range(2)]

    def weights(self, e: Emitter, words: Any, plane: int) -> Any:
        """The part of the codes that is multiplied in a plane."""
        if e.cpu.int8_dot:
            return words
        return e.builder.and_(e.builder.lshr(words, e.integer(4 * plane)), e.integer(0x0F0F0F0F))

    def start(self, e: Emitter, correction: Any) -> Any:
        """What the sums of a plane begin with."""
        return correction if e.cpu.int8_dot else ir.Constant(e.shorts, None)

    def add(self, e: Emitter, total: Any, weights: Any, inputs: Any) -> Any:
        """A plane's sums and the products of one word."""
        if e.cpu.int8_dot:
            return e.call("llvm.x86.avx512.vpdpbusd.512", total, weights, inputs)
        return e.builder.add(total, e.multiply_bytes(weights, inputs))

    def total(self, e: Emitter, correction: Any, planes: list[Any]) -> Any:
        """The int32 sums of a group, of the sums of its planes."""
        if e.cpu.int8_dot:
            return planes[0]
        for plane, sums in enumerate(planes):
            correction = e.builder.add(correction, e.builder.shl(e.add_neighbours(sums), e.integer(4 * plane)))
        return correction


FLOAT32, BF16_PAIRS, INT8_QUADS = Float32(), Bf16Pairs(), Int8Quads()
