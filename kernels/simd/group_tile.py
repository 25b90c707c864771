"""The tile for quantised weights: integer products within a group, float32 sums over the groups.

    out[r, o] (+)= sum over g of weight_scale[g, o] * x_scale[r, g] * sum over k in g of (code[o, k] - zero) * x[r, k]

A vector holds LANES outputs, in the order of the file (quantized.py of the package says how it lies), so codes go from
the memory map into a register and straight into the product. Inputs are int8 with a scale for each group. Codes are
unsigned: the sums start at -zero * sum of x over the group, which stands in the inputs' `corrections`.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pg2ref.kernels.simd.cpu import Cpu
from pg2ref.kernels.simd.products import INT8_QUADS
from pg2ref.kernels.simd.vectors import F32, I16, I32, I64, Emitter

LANES = 16  # outputs in a block of the file
GROUP = 32  # inputs that share a scale
WORDS = GROUP // 4


def make_group_tile(cpu: Cpu, rows: int) -> Any:
    """`tile(x, x_stride, x_scales, corrections, g_stride, codes, scales, groups, out, out_stride, fresh, bits)`.

    Addresses, and strides in bytes; `g_stride` is that of a row's scales and corrections. As in tile.py each output is
    one chain of additions, whatever the blocking.
    """

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x, x_stride, x_scales, corrections, g_stride, codes, scales, groups, out, out_stride, fresh, bits = arguments
        e = Emitter(builder, cpu, LANES)
        sums, places = e.variables(rows), e.rows(out, out_stride, rows)
        e.start_sums(sums, places, fresh)
        inputs = [e.rows(base, stride, rows) for base, stride in ((x, x_stride), (corrections, g_stride))]
        scale_rows = e.rows(x_scales, g_stride, rows)
        with builder.if_else(builder.icmp_signed("==", bits, I64(8))) as branches:
            for branch, size in zip(branches, (8, 4), strict=True):
                with branch, cgutils.for_range(builder, groups) as loop:
                    place = e.address(codes, builder.mul(loop.index, I64(GROUP * LANES * size // 8)))
                    products = group_products(e, group_words(e, place, size), *inputs, loop.index)
                    place = e.address(scales, builder.mul(loop.index, I64(2 * LANES)))
                    weight_scale = e.widen(e.load(place, ir.VectorType(I16, LANES)))
                    add_scaled(e, sums, products, weight_scale, scale_rows, loop.index)
        for total, place in zip(sums, places, strict=True):
            e.store(builder.load(total), place)
        return _context.get_dummy_value()

    @intrinsic
    def tile(typing, x, x_stride, x_scales, corrections, g_stride, codes, scales, groups, out, out_stride, fresh, bits):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 12), emit

    return tile


def group_products(e: Emitter, words: Any, x_rows: list[Any], correction_rows: list[Any], group: Any) -> list[Any]:
    """The integer sums of one group, of each row."""
    builder, totals = e.builder, e.variables(len(x_rows), e.integers)
    for total, row in zip(totals, correction_rows, strict=True):
        builder.store(e.splat(e.load(e.address(row, builder.mul(group, I64(4))), I32)), total)
    offset = builder.mul(group, I64(GROUP))
    for k, weights in enumerate(words):
        parts = INT8_QUADS.parts(e, weights, signed=False)
        for total, row in zip(totals, x_rows, strict=True):
            inputs = INT8_QUADS.parts(e, e.splat(e.load(e.address(row, offset, 4 * k), I32)))
            builder.store(INT8_QUADS.add(e, builder.load(total), parts, inputs), total)
    return [builder.load(total) for total in totals]


def add_scaled(e: Emitter, sums: Any, products: Any, weight_scale: Any, scale_rows: Any, group: Any) -> None:
    """Add a group's integer sums times its two scales."""
    builder = e.builder
    for total, product, row in zip(sums, products, scale_rows, strict=True):
        scaled = e.multiply(builder.sitofp(product, e.vector), weight_scale)
        x_scale = e.splat(e.load(e.address(row, builder.mul(group, I64(4))), F32))
        builder.store(e.multiply_add(scaled, x_scale, builder.load(total)), total)


def group_words(e: Emitter, codes: Any, bits: int) -> Any:
    """The vectors of a group, four inputs a word: as stored, or two from each vector of nibbles."""
    width = 4 * LANES
    if bits == 8:
        for k in range(WORDS):
            yield e.load(e.address(codes, k * width), e.integers)
        return
    nibble = e.integer(0x0F0F0F0F)
    for pair in range(WORDS // 2):
        both = e.load(e.address(codes, pair * width), e.integers)
        yield e.builder.and_(both, nibble)
        yield e.builder.and_(e.builder.lshr(both, e.integer(4)), nibble)
