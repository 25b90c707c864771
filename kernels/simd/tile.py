"""The register tile: some rows of inputs times a panel of outputs, every sum in a register of its own.

    out[r, o] = begin[r, o] + sum over k of x[r, k] * panel[k, o]

One step loads two vectors of outputs' weights and one word of each row, and does rows * 2 products with them: enough
arithmetic for each load that the multipliers, not the memory, set the pace. k counts 32-bit words (products.py).
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pg2ref.kernels.simd.cpu import Cpu
from pg2ref.kernels.simd.products import Product
from pg2ref.kernels.simd.vectors import I64, Emitter, call_apart

VECTORS = 2  # of outputs in a tile


def make_tile(cpu: Cpu, product: Product, rows: int) -> Any:
    """`tile(x, x_stride, panel, panel_stride, steps, begin, begin_stride, out, out_stride)`.

    Addresses, and strides in bytes. The sums begin at `begin`: one row for all (stride 0), zeros or the bias, or `out`
    itself, to go on. Each output is one chain of additions in the order of k, whatever the blocking, so splitting k
    into several calls changes nothing.
    """

    def write(builder: Any, arguments: Any) -> None:
        x, x_stride, panel, panel_stride, steps, begin, begin_stride, out, out_stride = arguments
        e, width = Emitter(builder, cpu), 4 * cpu.lanes
        sums = e.variables(rows * VECTORS)
        x_rows = e.rows(x, x_stride, rows)
        for r, row in enumerate(e.rows(begin, begin_stride, rows)):
            for v in range(VECTORS):
                builder.store(e.load(e.address(row, v * width), e.vector), sums[r * VECTORS + v])
        with cgutils.for_range(builder, steps) as loop:
            outputs = e.address(panel, builder.mul(loop.index, panel_stride))
            stored = ir.VectorType(product.word, cpu.lanes)
            weights = [product.parts(e, e.load(e.address(outputs, v * width), stored)) for v in range(VECTORS)]
            offset = builder.mul(loop.index, I64(4))
            for r in range(rows):
                inputs = product.parts(e, e.splat(e.load(e.address(x_rows[r], offset), product.word)))
                for v in range(VECTORS):
                    total = sums[r * VECTORS + v]
                    builder.store(product.add(e, builder.load(total), weights[v], inputs), total)
        for r, row in enumerate(e.rows(out, out_stride, rows)):
            for v in range(VECTORS):
                e.store(builder.load(sums[r * VECTORS + v]), e.address(row, v * width))

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        call_apart(builder, f"tile_{type(product).__name__}_{rows}", write, arguments)
        return _context.get_dummy_value()

    @intrinsic
    def tile(typing, x, x_stride, panel, panel_stride, steps, begin, begin_stride, out, out_stride):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 9), emit

    return tile
