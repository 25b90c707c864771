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
    """Four unsigned codes and four signed inputs a word, summed in int32 over a group (VPDPBUSD).

    A code of b bits stands for itself less 2 ** (b - 1), so sums of codes need a correction. Inputs are -127 to 127.
    Without the instruction bytes are multiplied in pairs into int16 lanes, where the products of four bits and an input
    are so small that those of a whole group fit: 16 * 15 * 127 = 30,480 < 2 ** 15. Of eight bits one pair does, once a
    code has become the magnitude of what it stands for, 128 at most, and the inputs have its sign: 2 * 128 * 127 =
    32,512. Such sums need no correction.
    """

    def in_turn(self, cpu: Cpu, rows: int, bits: int) -> list[tuple[int, int]]:
        """The order for two words and some rows: (word, row). All rows of a word, as it takes registers until the last.

        But where two products of a row are added before they join its sums, the one follows the other.
        """
        if cpu.int8_dot or bits == 8:
            return [(word, row) for word in range(2) for row in range(rows)]
        return [(word, row) for row in range(rows) for word in range(2)]

    def weights(self, e: Emitter, words: Any, bits: int) -> Parts:
        """A vector of codes, ready to be multiplied."""
        if e.cpu.int8_dot or bits == 4:
            return (words,)
        signed = e.builder.xor(words, e.integer(0x80808080))
        return e.with_signs(signed, signed), signed  # magnitudes

    def start(self, e: Emitter, correction: Any, bits: int) -> Any:
        """What the sums of a group begin with."""
        if e.cpu.int8_dot:
            return correction
        return e.integer(0) if bits == 8 else ir.Constant(e.shorts, None)

    def add(self, e: Emitter, total: Any, weights: Parts, inputs: Any, bits: int) -> Any:
        """The sums and the products of one word."""
        if e.cpu.int8_dot:
            return e.call("llvm.x86.avx512.vpdpbusd.512", total, weights[0], inputs)
        if bits == 4:
            return e.builder.add(total, e.multiply_bytes(weights[0], inputs))
        products = e.multiply_bytes(weights[0], e.with_signs(inputs, weights[1]))
        return e.builder.add(total, e.add_neighbours(products))

    def total(self, e: Emitter, correction: Any, sums: Any, bits: int) -> Any:
        """The int32 sums of a group."""
        if e.cpu.int8_dot or bits == 8:
            return sums
        return e.builder.add(correction, e.add_neighbours(sums))


FLOAT32, BF16_PAIRS, INT8_QUADS = Float32(), Bf16Pairs(), Int8Quads()
