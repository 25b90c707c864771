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


def make_group_tile(cpu: Cpu, rows: int, vectors: int) -> Any:
    """`tile(x, x_stride, x_scales, corrections, g_stride, codes, scales, step, groups, out, out_stride, fresh, bits)`.

    Addresses, and strides in bytes; `g_stride` is that of a row's scales and corrections. `step`: how many groups lie
    between two blocks of outputs, of which a tile does `vectors`; 0 where there is but one, which all of them do then.
    As in tile.py each output is one chain of additions, whatever the blocking.
    """

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x, x_stride, x_scales, corrections, g_stride, codes, scales, step, groups, *rest = arguments
        out, out_stride, fresh, bits = rest
        e = Emitter(builder, cpu, LANES)
        width = builder.select(builder.icmp_signed("==", step, I64(0)), I64(0), I64(4 * LANES))
        places = [place for row in e.rows(out, out_stride, rows) for place in e.rows(row, width, vectors)]
        sums = e.variables(rows * vectors)
        e.start_sums(sums, places, fresh)
        inputs = [e.rows(base, stride, rows) for base, stride in ((x, x_stride), (corrections, g_stride))]
        scale_rows = e.rows(x_scales, g_stride, rows)
        scale_blocks = e.rows(scales, builder.mul(step, I64(2 * LANES)), vectors)
        with builder.if_else(builder.icmp_signed("==", bits, I64(8))) as branches:
            for branch, size in zip(branches, (8, 4), strict=True):
                with branch:
                    group_bytes = I64(GROUP * LANES * size // 8)
                    blocks = e.rows(codes, builder.mul(step, group_bytes), vectors)
                    with cgutils.for_range(builder, groups) as loop:
                        offset = builder.mul(loop.index, group_bytes)
                        words = zip(*(group_words(e, e.address(block, offset), size) for block in blocks), strict=True)
                        products = group_products(e, words, vectors, *inputs, loop.index)
                        add_scaled(e, sums, products, scale_blocks, scale_rows, loop.index)
        for total, place in zip(sums, places, strict=True):
            e.store(builder.load(total), place)
        return _context.get_dummy_value()

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typing, x, x_stride, x_scales, corrections, g_stride, codes, scales, step, groups, out, out_stride, fresh, bits
    ):
        return types.void(*[types.int64] * 13), emit

    return tile


def group_products(
    e: Emitter, words: Any, vectors: int, x_rows: list[Any], correction_rows: list[Any], group: Any
) -> list[Any]:
    """The integer sums of one group: of each row, of each vector of outputs."""
    builder, offset = e.builder, e.builder.mul(group, I64(GROUP))
    totals = [e.variables(vectors, e.integers) for _ in x_rows]
    for mine, row in zip(totals, correction_rows, strict=True):
        correction = e.splat(e.load(e.address(row, builder.mul(group, I64(4))), I32))
        for total in mine:
            builder.store(correction, total)
    for k, weights in enumerate(words):
        parts = [INT8_QUADS.parts(e, weight, signed=False) for weight in weights]
        for mine, row in zip(totals, x_rows, strict=True):
            inputs = INT8_QUADS.parts(e, e.splat(e.load(e.address(row, offset, 4 * k), I32)))
            for total, part in zip(mine, parts, strict=True):
                builder.store(INT8_QUADS.add(e, builder.load(total), part, inputs), total)
    return [builder.load(total) for mine in totals for total in mine]


def add_scaled(
    e: Emitter, sums: list[Any], products: list[Any], scale_blocks: list[Any], scale_rows: list[Any], group: Any
) -> None:
    """Add a group's integer sums times its two scales."""
    builder, kind = e.builder, ir.VectorType(I16, LANES)
    offset = builder.mul(group, I64(2 * LANES))
    weight_scales = [e.widen(e.load(e.address(block, offset), kind)) for block in scale_blocks]
    for r, row in enumerate(scale_rows):
        x_scale = e.splat(e.load(e.address(row, builder.mul(group, I64(4))), F32))
        for v, weight_scale in enumerate(weight_scales):
            place = r * len(weight_scales) + v
            scaled = e.multiply(builder.sitofp(products[place], e.vector), weight_scale)
            builder.store(e.multiply_add(scaled, x_scale, builder.load(sums[place])), sums[place])


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
