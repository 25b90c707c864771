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
    # Whole towers: rounding is amplified from layer to layer, most where scores are sharp and no cap holds them.
    "stage/float32": Bound(factor=200, seen=50.5, note="small models against float64; worst without soft caps"),
    "stage/transformers float32": Bound(factor=200, seen=43.4, note="the same for Transformers 5.23"),
    "stage/golden": Bound(factor=200, seen=51.0, note="float32 of both: their errors add"),
}


def error_in_units(actual: Array, exact: Array, terms: int) -> float:
    """Largest error as a multiple of eps * sqrt(terms) * the largest magnitude."""
    assert actual.shape == exact.shape, f"shape {actual.shape}, expected {exact.shape}"
    assert np.isfinite(actual).all(), "NaN or infinity"
    unit = float(np.finfo(actual.dtype).eps) * np.sqrt(terms) * max(float(np.abs(exact).max()), 1e-30)
    return float(np.abs(actual.astype(np.float64) - exact).max()) / unit


def assert_close(actual: Array, exact: Array, bound: str, terms: int) -> None:
    """`actual` is `exact` but for rounding, under the named bound of the table."""
    __tracebackhide__ = True
    error = error_in_units(actual, exact.astype(np.float64), terms)
    if error > BOUNDS[bound].factor:
        worst = np.unravel_index(np.abs(actual - exact).argmax(), actual.shape)
        pytest.fail(
            f"{bound}: error {error:.3g} times eps * sqrt({terms}), the bound is {BOUNDS[bound].factor}; "
            f"worst at {tuple(map(int, worst))}: {actual[worst]!r}, exact {exact[worst]!r}"
        )
