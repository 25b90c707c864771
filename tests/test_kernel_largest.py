"""The largest of a row: every length around the width of a vector, anywhere in the row, and NaN."""

import numpy as np
import pytest

from pg2ref.arrays import Array
from pg2ref.kernels.compiling import inlined
from pg2ref.kernels.simd.largest import LANES, largest_of

LENGTHS = sorted({1, 2, 7, LANES - 1, LANES, LANES + 1, 2 * LANES - 1, 3 * LANES, 101} - {0})


@inlined
def find(numbers, found):  # type: ignore[no-untyped-def]
    """A row's largest number."""
    found[0] = largest_of(numbers)


def found_in(numbers: Array) -> float:
    found = np.zeros(1, np.float32)
    find(numbers, found)
    return float(found[0])


@pytest.mark.parametrize("length", LENGTHS)
def test_wherever_it_stands(length: int) -> None:
    numbers = -np.random.default_rng(length).random(length, np.float32) - 1
    for place in range(length):
        row = numbers.copy()
        row[place] = -0.5
        assert found_in(row) == -0.5


@pytest.mark.parametrize("length", LENGTHS)
def test_a_nan_is_passed_over_or_kept_and_nothing_else_comes_out(length: int) -> None:
    numbers = np.random.default_rng(length).random(length, np.float32)
    for place in range(length):
        row = numbers.copy()
        row[place] = np.nan
        found = found_in(row)
        assert np.isnan(found) or found in numbers
