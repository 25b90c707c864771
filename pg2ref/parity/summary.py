"""A stage in a kilobyte: how large its numbers are, and 256 of them; a port can keep such records in its repository.

Which 256 is a recipe that any language can follow: the states s of the generator s = (1664525 s + 1013904223) mod 2^32
(Numerical Recipes, section 7.1), the first of them 1013904223; state s picks the value at (s * size) >> 32 of the
flat array. A record of many stages keeps fewer, by the first states alone. Of an array that is no larger than the
number of samples every value is kept, in order.
"""

import math
from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array, widen
from pg2ref.parity.difference import BLOCK, F64, Difference, measure, ratio

SAMPLES = 256
MULTIPLIER, INCREMENT = 1664525, 1013904223


class Summary(NamedTuple):
    """What is kept of a stage; statistics are those of its finite values."""

    minimum: float
    maximum: float
    mean: float
    std: float
    norm: float
    nans: int
    infinities: int
    samples: Array  # float32


def sampled_positions(size: int, count: int = SAMPLES) -> Array:
    """Indices into a flat array of `size` values, at most `count` of them; some may be there twice."""
    if size <= count:
        return np.arange(size)
    state, positions = 0, []
    for _ in range(count):
        state = (MULTIPLIER * state + INCREMENT) % 2**32
        positions.append(state * size >> 32)
    return np.array(positions)


def samples_of(array: Array) -> Array:
    """The sampled values of an array."""
    flat = array.reshape(-1)
    return widen(flat[sampled_positions(flat.size)], np.dtype(np.float32))


def summarize(array: Array) -> Summary:
    """The summary of an array of any shape and type."""
    flat = array.reshape(-1)
    count = nans = infinities = 0
    total = squares = 0.0
    minimum, maximum = math.inf, -math.inf
    for begin in range(0, flat.size, BLOCK):
        values = widen(flat[begin : begin + BLOCK], F64)
        if not math.isfinite(values.sum()):
            nans += int(np.isnan(values).sum())
            infinities += int(np.isinf(values).sum())
            values = values[np.isfinite(values)]
        count += values.size
        total += float(values.sum())
        squares += float(np.square(values).sum())
        minimum = min(minimum, float(values.min(initial=math.inf)))
        maximum = max(maximum, float(values.max(initial=-math.inf)))
    if not count:
        minimum = maximum = 0.0
    mean = total / max(count, 1)
    variance = max(squares / max(count, 1) - mean * mean, 0.0)
    return Summary(minimum, maximum, mean, math.sqrt(variance), math.sqrt(squares), nans, infinities, samples_of(array))


def shorten(summary: Summary, size: int, count: int) -> Summary:
    """The summary of an array of `size` values with `count` samples, fewer than it has, or all that there are."""
    if size <= count:
        return summary
    is_whole = len(summary.samples) == size
    return summary._replace(samples=summary.samples[sampled_positions(size, count) if is_whole else slice(count)])


def with_same_samples(reference: Summary, other: Summary, size: int) -> tuple[Summary, Summary]:
    """Two summaries of arrays of `size` values with the samples that both have."""
    count = min(len(reference.samples), len(other.samples))
    return shorten(reference, size, count), shorten(other, size, count)


def measure_summaries(reference: Summary, other: Summary, size: int, *, coarser_type: str) -> Difference:
    """What two summaries of arrays of `size` values, sampled in the same places, say about the arrays' difference.

    Taken from the samples, but for what the statistics know better: where norms or means are far apart, so are the
    arrays (the error's norm is no less than the difference of the norms), and likewise extremes and largest errors.
    The error of the samples is relative to the whole array, unless they are larger: a few huge values, seldom sampled,
    are most of some stages.
    """
    sampled = measure(reference.samples, other.samples, coarser_type=coarser_type)
    rms = reference.norm / math.sqrt(size)
    share = min(sampled.rms / rms, 1.0) if sampled.rms and rms else 1.0
    apart = ratio(abs(other.norm - reference.norm), reference.norm), ratio(abs(other.mean - reference.mean), rms)
    extremes = abs(other.minimum - reference.minimum), abs(other.maximum - reference.maximum)
    return sampled._replace(
        nrmse=max(sampled.nrmse * share, *apart),
        max_abs=max(sampled.max_abs, *extremes),
        bias=other.mean - reference.mean,
        rms=rms,
        worst=int(sampled_positions(size, len(reference.samples))[sampled.worst]),
        not_finite=max(sampled.not_finite, other.nans + other.infinities, reference.nans + reference.infinities),
    )
