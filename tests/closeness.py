"""How close is close enough: one table of derived bounds, and what was measured under them.

A bound is factor * eps(dtype) * sqrt(terms), relative to the largest magnitude of the exact result: `terms` numbers
are summed, their rounding errors are independent, so they grow with the square root. `seen` is the largest error
measured in the units of the bound's eps * sqrt(terms); a factor is never raised without a new measurement.
"""

from typing import NamedTuple

import numpy as np
import pytest

from pg2ref.arrays import Array


class Bound(NamedTuple):
    factor: float
    seen: float
    note: str = ""


BOUNDS: dict[str, Bound] = {
    # One operation against the oracle in Python floats, worst of float32 and float64.
    "linear": Bound(factor=1.5, seen=0.39),
    "rms_norm": Bound(factor=1, seen=0.26),
    "layer_norm": Bound(factor=1, seen=0.25),
    "gelu": Bound(factor=0.9, seen=0.23),
    "gated_gelu": Bound(factor=1.3, seen=0.34),
    # Of the largest gate times the largest up: both have the error of `linear`, GELU is at most 1.13 times as steep.
    "gated_linear": Bound(factor=1.5 * 1.13 + 1.5, seen=1.04),
    "soft_cap": Bound(factor=3, seen=0.80),
    "softmax": Bound(factor=2, seen=0.50),
    "rotate": Bound(factor=2, seen=0.54),
    "attend": Bound(factor=2.5, seen=0.66),
    # A row alone against the same row in company.
    "add": Bound(factor=0, seen=0, note="one rounding: the same numbers"),
    "scale": Bound(factor=0, seen=0, note="one rounding: the same numbers"),
    # Any operation of the table that rounds as Transformers does, in float32: each step is rounded there.
    "rounding/float32": Bound(factor=4.2, seen=1.06, note="200 seeds; soft_cap and gelu are the worst"),
    # Quantised matrices against the oracle with inputs rounded to int8. Kernels: integer sums are exact, what rounds is
    # a group's sum times two scales and the sum over groups, so terms are groups + 3. The reference rounds each input
    # and product: inputs + 3.
    "quantised linear": Bound(factor=1.6, seen=0.40),
    # What that rounding changes of exact products, as a share of half a step for each input, which it cannot pass.
    "quantised inputs": Bound(factor=1, seen=0.19, note="certain, no eps in it"),
    # Kernels against the reference in the same integer precision, as a share of what that precision changes at a stage.
    "integer stages": Bound(factor=1, seen=0.57, note="noise of one size, drawn anew where a rounding falls otherwise"),
    # Kernels in bf16 against the truth in bf16, as a share of what bf16 changes at a stage. Mostly no rounding falls
    # otherwise; where one does, layers make of it noise drawn anew, and two draws of one size are sqrt(2) of it apart.
    "bf16 stages": Bound(factor=1.41, seen=0.951, note="0.001 but for one model; 2.38 where inputs are cut off"),
    # The mask decoder: one convolution, and all of it from codes to mask, against loops in float64.
    "convolve": Bound(factor=2.2, seen=0.55),
    "mask decoder": Bound(factor=1.4, seen=0.35),
    # One way of decoding against another: with the cache and without, together and alone.
    "decode": Bound(factor=40, seen=12.4),
    # Mean log-probability of a given answer, of the small model against float64: ours and that of Transformers.
    "loss": Bound(factor=4, seen=0.98),
    # Whole towers: rounding is amplified from layer to layer, most where scores are sharp and no cap holds them.
    "stage/float32": Bound(factor=139, seen=34.7, note="small models against float64; worst where attention is sharp"),
    "stage/transformers float32": Bound(
        factor=160, seen=53.9, note="the same for Transformers 5.23; the built-in model"
    ),
    "stage/golden": Bound(factor=147, seen=36.7, note="float32 of both: their errors add"),
}


def error_in_units(actual: Array, exact: Array, terms: int, magnitude: float | None = None) -> float:
    """Largest error as a multiple of eps * sqrt(terms) * the largest magnitude, that of the result unless given."""
    assert actual.shape == exact.shape, f"shape {actual.shape}, expected {exact.shape}"
    assert np.isfinite(actual).all(), "NaN or infinity"
    largest = float(np.abs(exact).max()) if magnitude is None else magnitude
    unit = float(np.finfo(actual.dtype).eps) * np.sqrt(terms) * max(largest, 1e-30)
    return float(np.abs(actual.astype(np.float64) - exact).max()) / unit


def assert_close(actual: Array, exact: Array, bound: str, terms: int, magnitude: float | None = None) -> None:
    """`actual` is `exact` but for rounding, under the named bound of the table."""
    __tracebackhide__ = True
    error = error_in_units(actual, exact.astype(np.float64), terms, magnitude)
    if error > BOUNDS[bound].factor:
        worst = np.unravel_index(np.abs(actual - exact).argmax(), actual.shape)
        pytest.fail(
            f"{bound}: error {error:.3g} times eps * sqrt({terms}), the bound is {BOUNDS[bound].factor}; "
            f"worst at {tuple(map(int, worst))}: {actual[worst]!r}, exact {exact[worst]!r}"
        )
