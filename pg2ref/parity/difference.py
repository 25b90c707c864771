"""How far one array is from another: the numbers that a comparison shows, summed over blocks, so of any size."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array, widen

BLOCK = 1 << 16  # values widened to float64 at a time: they stay in the cache while they are summed
FRACTION_BITS = {"f64": 52, "f32": 23, "f16": 10, "bf16": 7}  # of the types that floats are stored in
F64 = np.dtype(np.float64)


class Difference(NamedTuple):
    """Of `other` from `reference`, both taken as flat; places where either is not finite count in `not_finite` alone.

    `ulp` is the largest error in units in the last place of the reference's largest value, at the coarser of both
    types: that of single values means nothing where terms cancel.
    """

    max_abs: float
    worst: int  # where it is, as an index into the flat array
    nrmse: float  # norm of the error over norm of the reference
    cosine: float
    scale: float  # the factor on the reference that comes nearest to other: <other, reference> / <reference, reference>
    bias: float  # mean error
    ulp: float
    rms: float  # of the reference
    not_finite: int


def measure(reference: Array, other: Array, *, coarser_type: str = "f32") -> Difference:
    """Compare two arrays of one size; of bf16 bits what they mean. `coarser_type` is a key of FRACTION_BITS."""
    squares = error_squares = other_squares = products = errors = 0.0
    max_abs, worst, largest, not_finite, begin = 0.0, 0, 0.0, 0, 0
    for exact, found in blocks(reference, other):
        is_finite = np.isfinite(exact) & np.isfinite(found)
        if not is_finite.all():
            not_finite += int(np.count_nonzero(~is_finite))
            exact, found = np.where(is_finite, exact, 0), np.where(is_finite, found, 0)
        error = found - exact
        squares, other_squares = squares + float(exact @ exact), other_squares + float(found @ found)
        error_squares, products = error_squares + float(error @ error), products + float(exact @ found)
        errors += float(error.sum())
        largest = max(largest, float(np.abs(exact).max()))
        here = int(np.abs(error).argmax())
        if abs(error[here]) > max_abs:
            max_abs, worst = float(abs(error[here])), begin + here
        begin += len(exact)
    unit = 2.0 ** (math.frexp(largest)[1] - 1 - FRACTION_BITS[coarser_type])
    return Difference(
        max_abs=max_abs,
        worst=worst,
        nrmse=ratio(math.sqrt(error_squares), math.sqrt(squares)),
        cosine=products / math.sqrt(squares * other_squares) if squares and other_squares else float(not error_squares),
        scale=ratio(products, squares) if squares else 1.0,
        bias=errors / reference.size,
        ulp=max_abs / unit if largest else ratio(max_abs, 0.0),
        rms=math.sqrt(squares / reference.size),
        not_finite=not_finite,
    )


def share_beyond(reference: Array, other: Array, limit: float) -> float:
    """The share of values whose error is larger than `limit`."""
    beyond = sum(int(np.count_nonzero(np.abs(found - exact) > limit)) for exact, found in blocks(reference, other))
    return beyond / reference.size


def ratio(error: float, size: float) -> float:
    """The quotient; 0 where there is no error, infinite where there is one of nothing."""
    return error / size if size else math.inf if error else 0.0


def blocks(reference: Array, other: Array) -> Iterator[tuple[Array, Array]]:
    """Both in float64, BLOCK values at a time."""
    flat = reference.reshape(-1), other.reshape(-1)
    for begin in range(0, flat[0].size, BLOCK):
        exact, found = (widen(array[begin : begin + BLOCK], F64) for array in flat)
        yield exact, found
