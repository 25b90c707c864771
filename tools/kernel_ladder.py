"""The ladder of kernels/README.md: one product of matrices, from three plain loops to the register tile, rung by rung.

    python tools/kernel_ladder.py
    python tools/kernel_ladder.py --readme kernels/README.md

Each repetition measures every rung once, right after the limit of the machine that it is judged by
(kernels/machine_limits.py), and takes the share then: machines are noisy, and clocks change.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import numpy as np
import peer_table
from bench_peers import write_whole
from numba import njit, prange

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.benchmark.measure import Machine, seconds_of
from pg2ref.benchmark.report import cpu_name
from pg2ref.kernels import linear, quantized
from pg2ref.kernels.compiling import FASTMATH
from pg2ref.kernels.machine_limits import path_name
from pg2ref.kernels.stored import as_float32
from pg2ref.quantized import quantize_matrix

ROWS, OUTPUTS, INPUTS = 264, 2304, 2304  # of the size of a prompt and of a layer of the 3B decoder
LONG_OUTPUTS = 1 << 17  # of the matrix that one row reads: 600 MB in bf16, more than caches hold
ANY_ORDER = FASTMATH | {"reassoc"}  # what no kernel may have


def three_loops(x_TD, weight_OD, out_TO):  # type: ignore[no-untyped-def]
    """What the product means."""
    for o in prange(weight_OD.shape[0]):
        for t in range(x_TD.shape[0]):
            total = np.float32(0)
            for d in range(x_TD.shape[1]):
                total += x_TD[t, d] * as_float32(weight_OD[o, d])
            out_TO[t, o] = total


def four_by_four(x_TD, weight_OD, out_TO):  # type: ignore[no-untyped-def]
    """Sixteen sums at a time, so that each number read takes part in four products."""
    for block in prange(weight_OD.shape[0] // 4):
        o = 4 * block
        for t in range(0, x_TD.shape[0], 4):
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0)
            for d in range(x_TD.shape[1]):
                w0, w1 = as_float32(weight_OD[o, d]), as_float32(weight_OD[o + 1, d])
                w2, w3 = as_float32(weight_OD[o + 2, d]), as_float32(weight_OD[o + 3, d])
                x0, x1, x2, x3 = x_TD[t, d], x_TD[t + 1, d], x_TD[t + 2, d], x_TD[t + 3, d]
                s00, s01, s02, s03 = s00 + x0 * w0, s01 + x0 * w1, s02 + x0 * w2, s03 + x0 * w3
                s10, s11, s12, s13 = s10 + x1 * w0, s11 + x1 * w1, s12 + x1 * w2, s13 + x1 * w3
                s20, s21, s22, s23 = s20 + x2 * w0, s21 + x2 * w1, s22 + x2 * w2, s23 + x2 * w3
                s30, s31, s32, s33 = s30 + x3 * w0, s31 + x3 * w1, s32 + x3 * w2, s33 + x3 * w3
            out_TO[t, o], out_TO[t, o + 1], out_TO[t, o + 2], out_TO[t, o + 3] = s00, s01, s02, s03
            out_TO[t + 1, o], out_TO[t + 1, o + 1], out_TO[t + 1, o + 2], out_TO[t + 1, o + 3] = s10, s11, s12, s13
            out_TO[t + 2, o], out_TO[t + 2, o + 1], out_TO[t + 2, o + 2], out_TO[t + 2, o + 3] = s20, s21, s22, s23
            out_TO[t + 3, o], out_TO[t + 3, o + 1], out_TO[t + 3, o + 2], out_TO[t + 3, o + 3] = s30, s31, s32, s33


class Rung(NamedTuple):
    """One way to multiply, what it does or reads, and what it was measured by."""

    name: str
    place: str
    limit: str  # f32, bf16, int8 or read
    amount: int  # operations, or bytes
    call: Callable[[], list[Array]]  # gives the product


def compiled(function: Callable[..., Any], flags: set[str]) -> Any:
    """For this run alone; nothing is kept on disk."""
    return njit(parallel=True, fastmath=flags, error_model="numpy", nogil=True)(function)


def make_rungs(rows: int = ROWS, outputs: int = OUTPUTS, long_outputs: int = LONG_OUTPUTS) -> list[Rung]:
    """The rungs, from the bottom; first for many rows, then for one."""
    rng = np.random.default_rng(0)
    x_TD = rng.standard_normal((rows, INPUTS), np.float32)
    weight_OD = f32_to_bf16(rng.standard_normal((outputs, INPUTS), np.float32))
    long_OD = np.tile(weight_OD, (-(-long_outputs // outputs), 1))[:long_outputs]
    integers = quantize_matrix(weight_OD, 8)
    in_order, any_order = compiled(three_loops, FASTMATH), compiled(three_loops, ANY_ORDER)
    blocked, one_TD = compiled(four_by_four, ANY_ORDER), x_TD[:1]
    work = 2 * rows * outputs * INPUTS

    def loop(kernel: Any, values: Array, matrix: Array) -> Callable[[], list[Array]]:
        out_TO = np.empty((len(values), len(matrix)), np.float32)
        return lambda: kernel(values, matrix, out_TO) or [out_TO]

    def multiply(values: Array, matrix: Array, is_bf16: bool) -> Callable[[], list[Array]]:
        return lambda: linear.linear_each(values, [matrix], [None], is_bf16=is_bf16)

    here, long_bytes = "tools/kernel_ladder.py", int(long_OD.nbytes)
    return [
        Rung("three loops, sums in order", here, "f32", work, loop(in_order, x_TD, weight_OD)),
        Rung("three loops, sums in any order", here, "f32", work, loop(any_order, x_TD, weight_OD)),
        Rung("four rows by four outputs", here, "f32", work, loop(blocked, x_TD, weight_OD)),
        Rung("register tile, float32", "panels.py", "f32", work, multiply(x_TD, weight_OD, False)),
        Rung("register tile, pairs of bf16", "panels.py", "bf16", work, multiply(x_TD, weight_OD, True)),
        Rung("group tile, int8", "quantized.py", "int8", work, lambda: quantized.linear_each(x_TD, [integers], [None])),
        Rung("one row, three loops", here, "read", long_bytes, loop(any_order, one_TD, long_OD)),
        Rung("one row, float32", "few_rows.py", "read", long_bytes, multiply(one_TD, long_OD, False)),
        Rung("one row, pairs of bf16", "few_rows.py", "read", long_bytes, multiply(one_TD, long_OD, True)),
    ]


class Found(NamedTuple):
    """What was measured of a rung: medians."""

    rung: Rung
    rate: float  # a second
    share: float  # of the limit, each repetition's own


def climb(rungs: list[Rung], machine: Machine, repeat: int) -> list[Found]:
    """Measure limits and rungs in turn."""
    for rung in rungs:  # compile, and bring everything into memory
        rung.call()
    rates: list[list[float]] = [[] for _ in rungs]
    shares: list[list[float]] = [[] for _ in rungs]
    for _ in range(repeat):
        for index, rung in enumerate(rungs):
            limit = machine.measure(rung.limit)
            rate = rung.amount / seconds_of(rung.call)
            rates[index].append(rate)
            shares[index].append(rate / limit)
    return [Found(rung, median(rates[i]), median(shares[i])) for i, rung in enumerate(rungs)]


def markdown(found: list[Found], machine: Machine, repeat: int) -> str:
    """The table, limits and all."""
    limits = {limit.name: median(limit.rates) for limit in machine.limits() if limit.rates}
    lines = [
        f"{cpu_name()}, {machine.threads} threads, path `{machine.path}`; {ROWS} rows times {OUTPUTS:,} outputs of "
        f"{INPUTS:,} inputs, weights in bf16 or int8; one row times {LONG_OUTPUTS:,} outputs. Medians of {repeat}; "
        f"limits between them: float32 {limits['f32'] / 1e9:,.0f} GFLOP/s, bf16 {limits['bf16'] / 1e9:,.0f}, int8 "
        f"{limits['int8'] / 1e9:,.0f}, reading {limits['read'] / 1e9:,.0f} GB/s.",
        "",
        "| rung | where | rate | share of its limit |",
        "|---|---|---|---|",
    ]
    for rung, rate, share in found:
        unit = "GB/s" if rung.limit == "read" else "GFLOP/s"
        lines.append(f"| {rung.name} | `{rung.place}` | {rate / 1e9:,.0f} {unit} | {share:.0%} of {rung.limit} |")
    return "\n".join(lines)


@click.command()
@click.option("--repeat", type=click.IntRange(min=1), default=7, show_default=True, help="Repetitions of each rung.")
@click.option(
    "--readme",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Put the table there, between the marks of this processor's path.",
)
def main(repeat: int, readme: Path | None) -> None:
    """Measure the ladder and print it as a table."""
    text = readme.read_text(encoding="utf-8") if readme else ""
    if readme:
        peer_table.replace_block(text, "", path_name())  # raises before anything is measured
    machine = Machine()
    block = markdown(climb(make_rungs(), machine, repeat), machine, repeat)
    click.echo(block)
    if readme:
        write_whole(readme, peer_table.replace_block(text, block, path_name()))


if __name__ == "__main__":
    main()
