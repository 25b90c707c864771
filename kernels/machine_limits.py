"""What the machine can do at most: loops that only multiply, and a loop that only reads.

A kernel of the model is judged by its share of these. The multiplying loops keep everything in registers and have
enough sums that no product waits for the one before it; the reading loop walks through memory, one sequential stream a
thread, and adds up what it reads, because a load whose result nobody wants is not made.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from pg2ref.kernels.compiling import kernel, num_threads
from pg2ref.kernels.simd.cpu import Cpu, cpu
from pg2ref.kernels.simd.machine import CACHE_LINE, flush_denormals, restore_control
from pg2ref.kernels.simd.products import BF16_PAIRS, FLOAT32, INT8_QUADS
from pg2ref.kernels.simd.vectors import I64, Emitter
from pg2ref.kernels.stored import Array

OTHER_REGISTERS = 6  # than those of sums: for the operands, and for their parts where a product is emulated
LOADS = 8  # vectors read in one turn, each added to a sum of its own
F32_KIND, BF16_KIND, INT8_KIND = 0, 1, 2
KINDS = {"f32": F32_KIND, "bf16": BF16_KIND, "int8": INT8_KIND}
PRODUCTS_IN_WORD = {"f32": 1, "bf16": 2, "int8": 4}


class Arithmetic(NamedTuple):
    """How many operations were done, a product and its addition being two, and whether by the instruction itself."""

    operations: int
    is_emulated: bool


def make_float_loop(processor: Cpu, product: Any) -> Any:
    """`loop(operand, turns, out)`: nothing but products and additions to float32 sums."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        operand, turns, out = arguments
        e = Emitter(builder, processor)
        sums = e.variables(num_sums(processor))
        factors = product.parts(e, e.load(operand, ir.VectorType(product.word, processor.lanes)))
        for index, total in enumerate(sums):
            builder.store(e.number(float(index)), total)
        with cgutils.for_range(builder, turns):
            for total in sums:
                builder.store(product.add(e, builder.load(total), factors, factors), total)
        for total in sums:
            e.store(builder.fadd(e.load(out, e.vector), builder.load(total)), out)
        return _context.get_dummy_value()

    @intrinsic
    def loop(typing, operand, turns, out):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 3), emit

    return loop


def make_integer_loop(processor: Cpu) -> Any:
    """The same with int8 products. The sums are the inputs too: LLVM would work out a sum of equal products."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        operand, turns, out = arguments
        e = Emitter(builder, processor)
        sums = e.variables(num_sums(processor), e.integers)
        weights = INT8_QUADS.weights(e, e.load(operand, e.integers), bits=8)
        for index, total in enumerate(sums):
            builder.store(e.integer(index), total)
        with cgutils.for_range(builder, turns):
            for total in sums:
                words = builder.load(total)
                builder.store(INT8_QUADS.add(e, words, weights, words, bits=8), total)
        for total in sums:
            e.store(builder.add(e.load(out, e.integers), builder.load(total)), out)
        return _context.get_dummy_value()

    @intrinsic
    def loop(typing, operand, turns, out):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 3), emit

    return loop


def make_stream(processor: Cpu) -> Any:
    """`stream(address, turns, out)`: read `turns` times LOADS vectors that follow each other."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, turns, out = arguments
        e, width = Emitter(builder, processor), 4 * processor.lanes
        sums = e.variables(LOADS, e.integers)
        for total in sums:
            builder.store(e.integer(0), total)
        with cgutils.for_range(builder, turns) as loop:
            offset = builder.mul(loop.index, I64(LOADS * width))
            for index, total in enumerate(sums):
                words = e.load(e.address(address, offset, index * width), e.integers)
                builder.store(builder.add(builder.load(total), words), total)
        for total in sums:
            e.store(builder.add(e.load(out, e.integers), builder.load(total)), out)
        return _context.get_dummy_value()

    @intrinsic
    def stream(typing, address, turns, out):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 3), emit

    return stream


def num_sums(processor: Cpu) -> int:
    """Sums of a multiplying loop: 26 or 10, more than a product's latency times the products begun in a cycle."""
    return processor.registers - OTHER_REGISTERS


float_loop, pair_loop = make_float_loop(cpu(), FLOAT32), make_float_loop(cpu(), BF16_PAIRS)
quad_loop, stream = make_integer_loop(cpu()), make_stream(cpu())
TURN_BYTES = LOADS * 4 * cpu().lanes


@kernel
def multiply_in_registers(kind, turns, operand_W, out_IW, threads):  # type: ignore[no-untyped-def]
    """Each thread runs one loop; `out_IW` has a row of words for each."""
    operand = operand_W.ctypes.data
    for thread in prange(threads):
        out = out_IW.ctypes.data + thread * out_IW.shape[1] * 4
        control = flush_denormals(np.int64(1))
        if kind == F32_KIND:
            float_loop(operand, turns, out)
        elif kind == BF16_KIND:
            pair_loop(operand, turns, out)
        else:
            quad_loop(operand, turns, out)
        restore_control(control)
    out_IW[0, 0] += operand_W[0]  # an address keeps nothing alive


@kernel
def read_streams(words_W, out_IW, threads):  # type: ignore[no-untyped-def]
    """Each thread reads one stretch of the words, all of equal length."""
    turns = words_W.size * 4 // threads // TURN_BYTES
    for thread in prange(threads):
        place = words_W.ctypes.data + thread * turns * TURN_BYTES
        stream(place, turns, out_IW.ctypes.data + thread * out_IW.shape[1] * 4)
    out_IW[0, 0] += words_W[0]  # an address keeps nothing alive


def multiply_repeatedly(kind: str, turns: int) -> Arithmetic:
    """Multiply `turns` times in registers on every thread; `kind` is f32, bf16 or int8."""
    lanes, threads, features = cpu().lanes, num_threads(), cpu()
    operand_W = np.zeros(lanes, np.uint32)  # float sums stay what they are; what becomes of others matters to nobody
    multiply_in_registers(KINDS[kind], turns, operand_W, rows_for(threads), threads)
    is_emulated = {"f32": not features.fused, "bf16": not features.bf16_dot, "int8": not features.int8_dot}[kind]
    return Arithmetic(threads * turns * num_sums(features) * lanes * 2 * PRODUCTS_IN_WORD[kind], is_emulated)


def read(words_W: Array) -> int:
    """Read uint32 words from memory with every thread; how many bytes that were."""
    threads = num_threads()
    read_streams(words_W, rows_for(threads), threads)
    return int(words_W.nbytes // threads // TURN_BYTES * TURN_BYTES * threads)


def rows_for(threads: int) -> Array:
    """A place for each thread's result, a cache line or more apart."""
    return np.zeros((threads, max(CACHE_LINE, 4 * cpu().lanes) // 4), np.uint32)


def path_name() -> str:
    """The name of the processor's path (simd/cpu.py)."""
    return cpu().name
