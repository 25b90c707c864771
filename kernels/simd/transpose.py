"""A square of weights, rows and columns exchanged in registers: `panel[k, o] = w[o, k]`."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pg2ref.kernels.simd.cpu import Cpu
from pg2ref.kernels.simd.vectors import I16, Emitter


def make_transpose(cpu: Cpu, *, widened: bool, swapped: bool = False) -> Any:
    """`transpose(w, w_stride, panel, panel_stride)`: `lanes` rows of as many 32-bit words, or bf16 widened to them.

    `swapped`: of every two columns the second becomes the first row.
    """

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        w, w_stride, panel, panel_stride = arguments
        e, lanes = Emitter(builder, cpu), cpu.lanes
        rows = []
        for address in e.rows(w, w_stride, lanes):
            stored = e.load(address, ir.VectorType(I16, lanes) if widened else e.vector)
            rows.append(e.widen(stored) if widened else stored)
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
        for k, address in enumerate(e.rows(panel, panel_stride, lanes)):
            e.store(rows[k ^ 1 if swapped else k], address)
        return _context.get_dummy_value()

    @intrinsic
    def transpose(typing, w, w_stride, panel, panel_stride):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 4), emit

    return transpose
