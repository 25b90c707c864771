"""The tile for quantised weights: integer products within a group, float32 sums over the groups.

    out[r, o] (+)= sum over g of weight_scale[g, o] * x_scale[r, g] * sum over k in g of (code[o, k] - zero) * x[r, k]

A vector holds LANES outputs, in the order of the file (quantized.py of the package says how it lies), so codes go from
the memory map into a register and straight into the product. Inputs are int8 with a scale for each group. Codes are
unsigned: where products are those of codes (products.py), -zero * sum of x over the group is added to them, which
stands in the inputs' `corrections`.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pg2ref.kernels.simd.cpu import Cpu
from pg2ref.kernels.simd.products import INT8_QUADS
from pg2ref.kernels.simd.vectors import F32, I16, I32, I64, Emitter, call_apart

LANES = 16  # outputs in a block of the file
GROUP = 32  # inputs that share a scale
WORDS = GROUP // 4


def make_group_tile(cpu: Cpu, rows: int, vectors: int) -> Any:
    """`tile(x, x_stride, x_scales, corrections, g_stride, codes, scales, step, groups, out, out_stride, fresh, bits)`.

    Addresses, and strides in bytes; `g_stride` is that of a row's scales and corrections. `step`: how many groups lie
    between two blocks of outputs, of which a tile does `vectors`; 0 where there is but one, which all of them do then.
    As in tile.py each output is one chain of additions, whatever the blocking.
    """

    def write(builder: Any, arguments: Any) -> None:
        x, x_stride, x_scales, corrections, g_stride, codes, scales, step, groups, *rest = arguments
        out, out_stride, fresh, bits = rest
        e = Emitter(builder, cpu, LANES)
        width = builder.select(builder.icmp_signed("==", step, I64(0)), I64(0), I64(4 * LANES))
        places = [place for row in e.rows(out, out_stride, rows) for place in e.rows(row, width, vectors)]
        sums = e.variables(rows * vectors)
        e.start_sums(sums, places, fresh)
        bases, strides = (x, corrections, x_scales), (x_stride, g_stride, g_stride)
        inputs = list(zip(*(e.rows(*of, rows) for of in zip(bases, strides, strict=True)), strict=True))
        scale_blocks = e.rows(scales, builder.mul(step, I64(2 * LANES)), vectors)
        with builder.if_else(builder.icmp_signed("==", bits, I64(8))) as branches:
            for branch, size in zip(branches, (8, 4), strict=True):
                with branch:
                    blocks = e.rows(codes, builder.mul(step, I64(GROUP * LANES * size // 8)), vectors)
                    add_groups(e, sums, inputs, blocks, scale_blocks, groups, size)
        for total, place in zip(sums, places, strict=True):
            e.store(builder.load(total), place)

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        call_apart(builder, f"group_tile_{rows}_{vectors}", write, arguments)
        return _context.get_dummy_value()

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typing, x, x_stride, x_scales, corrections, g_stride, codes, scales, step, groups, out, out_stride, fresh, bits
    ):
        return types.void(*[types.int64] * 13), emit

    return tile


def add_groups(
    e: Emitter, sums: list[Any], inputs: list[Any], blocks: list[Any], scale_blocks: list[Any], groups: Any, bits: int
) -> None:
    """Add the products of all groups to the sums of some rows. `inputs`: where codes, corrections and scales lie."""
    with cgutils.for_range(e.builder, groups) as loop:
        offset = e.builder.mul(loop.index, I64(GROUP * LANES * bits // 8))
        products = group_products(e, [e.address(block, offset) for block in blocks], bits, inputs, loop.index)
        add_scaled(e, sums, products, scale_blocks, [scales for _, _, scales in inputs], loop.index)


def group_products(e: Emitter, codes: list[Any], bits: int, inputs: list[Any], group: Any) -> list[Any]:
    """The integer sums of one group: of each row, of each vector of outputs, whose codes lie at `codes`.

    LLVM unrolls the loop over pairs of words, but adds up within a pair first: of a whole group it would reorder plain
    additions, which takes more registers than there are.
    """
    builder = e.builder
    corrections = [e.splat(e.load(e.address(row, builder.mul(group, I64(4))), I32)) for _, row, _ in inputs]
    starts = [INT8_QUADS.start(e, correction, bits) for correction in corrections]
    sums = [e.variables(len(codes), start.type) for start in starts]
    for start, mine in zip(starts, sums, strict=True):
        for total in mine:
            builder.store(start, total)
    with cgutils.for_range(builder, I64(WORDS // 2)) as loop:
        pair = builder.mul(loop.index, I64(LANES * bits))  # bytes of two words
        words = [pair_words(e, e.address(place, pair), bits) for place in codes]
        weights = [[INT8_QUADS.weights(e, word, bits) for word in pair] for pair in words]
        offset = builder.add(builder.mul(group, I64(GROUP)), builder.mul(loop.index, I64(8)))
        for k, r in INT8_QUADS.in_turn(e.cpu, len(inputs), bits):
            numbers = e.splat(e.load(e.address(inputs[r][0], offset, 4 * k), I32))
            for total, mine in zip(sums[r], weights, strict=True):
                builder.store(INT8_QUADS.add(e, builder.load(total), mine[k], numbers, bits), total)
    results = []
    for correction, mine in zip(corrections, sums, strict=True):
        results += [INT8_QUADS.total(e, correction, builder.load(total), bits) for total in mine]
    return results


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


def pair_words(e: Emitter, codes: Any, bits: int) -> tuple[Any, Any]:
    """Two vectors of a group that follow each other, four inputs a word: as stored, or of one vector of nibbles."""
    first = e.load(codes, e.integers)
    if bits == 8:
        return first, e.load(e.address(codes, 4 * LANES), e.integers)
    nibble = e.integer(0x0F0F0F0F)
    return e.builder.and_(first, nibble), e.builder.and_(e.builder.lshr(first, e.integer(4)), nibble)
