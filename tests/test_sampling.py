"""Filters against loops and literal examples, the live warpers of Transformers, and the draws themselves."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pg2ref.arrays import Array
from pg2ref.errors import UsageError
from pg2ref.generation.sampling import (
    RandomSampler,
    filtered_probabilities,
    greedy,
    log_probabilities,
    make_sampler,
    probabilities,
)


def naive_filter(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """Transformers logits_process.py, a token at a time."""
    scores = [logit / temperature for logit in logits]
    if top_k is not None:
        threshold = sorted(scores, reverse=True)[min(top_k, len(scores)) - 1]
        scores = [score if score >= threshold else -math.inf for score in scores]
    if top_p is not None:
        weights = [math.exp(score - max(scores)) for score in scores]
        total = math.fsum(weights)
        ascending = sorted(range(len(scores)), key=lambda i: scores[i])
        cumulative = 0.0
        for i in ascending[:-1]:  # the best is always kept
            cumulative += weights[i] / total
            if cumulative <= 1 - top_p:
                scores[i] = -math.inf
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


def kept(probabilities_V: Array) -> list[int]:
    return np.flatnonzero(probabilities_V).tolist()


def log(*shares: float) -> Array:
    return np.log(np.array(shares))


@given(
    logits=st.lists(st.integers(-40, 40), min_size=1, max_size=23),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 25),
    top_p=st.none() | st.sampled_from([0.03, 0.31, 0.77, 0.97, 1.0]),
)
@settings(deadline=None, max_examples=200)
def test_filters_are_the_loops(logits: list[int], temperature: float, top_k: int | None, top_p: float | None) -> None:
    scores = [logit / 8 for logit in logits]  # many ties
    out = filtered_probabilities(np.array(scores, np.float32), temperature, top_k, top_p)
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, naive_filter(scores, temperature, top_k, top_p), rtol=1e-9, atol=1e-15)
    assert out.sum() == pytest.approx(1, abs=1e-12)


def test_top_k_keeps_ties() -> None:
    logits_V = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 0.0, 2.0])
    assert kept(filtered_probabilities(logits_V, 1.0, 1, None)) == [1, 3]
    assert kept(filtered_probabilities(logits_V, 1.0, 2, None)) == [1, 3]
    assert kept(filtered_probabilities(logits_V, 1.0, 3, None)) == [1, 2, 3, 4, 6]
    assert kept(filtered_probabilities(logits_V, 1.0, 6, None)) == [0, 1, 2, 3, 4, 6]
    for top_k in (7, 8, 1000):
        assert kept(filtered_probabilities(logits_V, 1.0, top_k, None)) == list(range(7))


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.0001, [0]),  # the best is always kept
        (0.45, [0]),  # 1/2 > 1 - 0.45: the token that crosses 1 - p from below is kept
        (0.5 - 1e-9, [0]),  # rounding decides at the boundary itself
        (0.5 + 1e-9, [0, 1]),
        (0.75 - 1e-9, [0, 1]),
        (0.75 + 1e-9, [0, 1, 2]),
        (0.875 - 1e-9, [0, 1, 2]),
        (0.88, [0, 1, 2, 4]),  # of the equal last two one is enough: the later in a stable order
        (0.93, [0, 1, 2, 4]),
        (0.94, [0, 1, 2, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
        (None, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_at_its_boundaries(top_p: float | None, expected: list[int]) -> None:
    """Shares in ascending order: 1/16 1/16 1/8 1/4 1/2."""
    logits_V = np.array([4.0, 3.0, 2.0, 1.0, 1.0]) * math.log(2)
    shares_V = probabilities(logits_V)
    np.testing.assert_allclose(shares_V, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16], rtol=1e-12)
    out_V = filtered_probabilities(logits_V, 1.0, None, top_p)
    assert kept(out_V) == expected
    np.testing.assert_allclose(out_V[expected], shares_V[expected] / shares_V[expected].sum(), rtol=1e-12)


def test_top_p_sees_what_top_k_left() -> None:
    """Of 0.4 0.3 0.2 0.1, top-k 2 leaves 4/7 and 3/7: the first alone holds 0.55, which takes two without top-k."""
    logits_V = log(0.4, 0.3, 0.2, 0.1)
    assert kept(filtered_probabilities(logits_V, 1.0, 2, 0.6)) == [0, 1]
    assert kept(filtered_probabilities(logits_V, 1.0, 2, 0.55)) == [0]
    assert kept(filtered_probabilities(logits_V, 1.0, None, 0.55)) == [0, 1]


def test_temperature_comes_before_top_p() -> None:
    logits_V = log(0.5, 0.3, 0.2)
    assert kept(filtered_probabilities(logits_V, 1.0, None, 0.6)) == [0, 1]
    assert kept(filtered_probabilities(logits_V, 0.25, None, 0.6)) == [0]  # 0.0625 : 0.0081 : 0.0016
    np.testing.assert_allclose(filtered_probabilities(logits_V, 0.5, None, None), np.array([25, 9, 4]) / 38, rtol=1e-12)


def test_extreme_temperatures_stay_finite() -> None:
    logits_V = np.array([29.9, -30.0, 30.0, 30.0], np.float32)
    np.testing.assert_array_equal(filtered_probabilities(logits_V, 1e-300, None, None), [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(filtered_probabilities(logits_V, 1e300, None, None), 0.25, rtol=1e-12)


def test_inputs_are_left_alone() -> None:
    logits_V = np.array([1.0, 2.0, 3.0])
    filtered_probabilities(logits_V, 1.0, 2, 0.5)
    filtered_probabilities(logits_V, 0.5, None, 0.9)
    np.testing.assert_array_equal(logits_V, [1, 2, 3])


@pytest.mark.parity
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 5, 50, 400])
@pytest.mark.parametrize("top_p", [None, 0.2, 0.9])
def test_filters_are_those_of_transformers(
    temperature: float, top_k: int | None, top_p: float | None, rng: np.random.Generator
) -> None:
    import torch
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits_TV = np.round(rng.standard_normal((7, 307)) * 3 * 16).astype(np.float32) / 16  # with ties
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits_TV).double())
    scores = scores if top_k is None else TopKLogitsWarper(top_k)(None, scores)
    scores = scores if top_p is None else TopPLogitsWarper(top_p)(None, scores)
    theirs_TV = torch.softmax(scores, -1).numpy()
    for logits_V, theirs_V in zip(logits_TV, theirs_TV, strict=True):
        ours_V = filtered_probabilities(logits_V, temperature, top_k, top_p)
        # Where equals straddle top-p's edge, the two sorts may keep different ones: as many, as likely.
        np.testing.assert_allclose(np.sort(ours_V), np.sort(theirs_V), rtol=1e-12)
        different = np.flatnonzero((ours_V > 0) != (theirs_V > 0))
        assert len(set(logits_V[different])) <= 1
        same = np.setdiff1d(np.arange(307), different)
        np.testing.assert_allclose(ours_V[same], theirs_V[same], rtol=1e-12)


# Log-probabilities.


def test_log_probabilities(rng: np.random.Generator) -> None:
    logits_V = (9 * rng.standard_normal(31)).astype(np.float32)
    total = math.fsum(math.exp(logit) for logit in logits_V.tolist())
    exact = [logit - math.log(total) for logit in logits_V.tolist()]
    out_V = log_probabilities(logits_V)
    assert out_V.dtype == np.float64
    np.testing.assert_allclose(out_V, exact, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(np.exp(out_V), probabilities(logits_V), rtol=1e-15)


def test_log_probabilities_of_large_and_forbidden_scores() -> None:
    out_V = log_probabilities(np.array([1e4, -np.inf, 1e4, -1e4], np.float32))
    np.testing.assert_allclose(out_V, [-math.log(2), -np.inf, -math.log(2), -2e4 - math.log(2)], rtol=1e-12)


# Choosing.


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert greedy(np.array([1.0, 7.0, 3.0, 7.0, 7.0])) == 1
    assert greedy(np.zeros(5)) == 0
    assert isinstance(greedy(np.array([0.0, 1.0], np.float32)), int)


def test_temperature_zero_is_greedy() -> None:
    assert make_sampler(0, None, None, seed=3) is greedy
    sampler = make_sampler(0.5, 4, 0.9, seed=3)
    assert isinstance(sampler, RandomSampler)
    assert (sampler.temperature, sampler.top_k, sampler.top_p) == (0.5, 4, 0.9)


def draws(count: int, logits_V: Array, *options: Any) -> list[int]:
    sampler = make_sampler(*options)
    return [sampler(logits_V) for _ in range(count)]


def test_a_seed_fixes_the_draws(rng: np.random.Generator) -> None:
    logits_V = rng.standard_normal(97).astype(np.float32)
    first = draws(50, logits_V, 1.0, None, None, 5)
    assert draws(50, logits_V, 1.0, None, None, 5) == first
    assert draws(50, logits_V, 1.0, None, None, 6) != first
    assert len(set(first)) > 20  # a sampler goes on in its stream


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, None, None), (0.5, None, None), (1.5, 4, None), (1.0, 5, 0.8)]
)
def test_draws_follow_the_distribution(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits_V = np.array([0.0, 1.0, 2.0, 0.5, -1.0, 1.5, -3.0], np.float32)
    expected = 4000 * np.array(naive_filter(logits_V.tolist(), temperature, top_k, top_p))
    counts = np.bincount(draws(4000, logits_V, temperature, top_k, top_p, 17), minlength=7)
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 25  # 1 in 3,000 for 6 degrees of freedom; the seed is fixed


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "seed", "complaint"),
    [
        (-0.1, None, None, 0, "temperature is -0.1, expected 0"),
        (math.inf, None, None, 0, "temperature is inf"),
        (math.nan, None, None, 0, "temperature is nan"),
        (1.0, 0, None, 0, "top-k is 0, expected 1 or more"),
        (1.0, -3, None, 0, "top-k is -3"),
        (1.0, None, 0.0, 0, "top-p is 0.0, expected more than 0 and at most 1"),
        (1.0, None, 1.01, 0, "top-p is 1.01"),
        (1.0, None, -1.0, 0, "top-p is -1.0"),
        (1.0, None, math.nan, 0, "top-p is nan"),
        (1.0, None, None, -1, "seed is -1, expected 0 or more"),
        (0, 5, None, 0, "give a temperature above 0"),
        (0, None, 0.5, 0, "give a temperature above 0"),
    ],
)
def test_values_out_of_range_are_refused(
    temperature: float, top_k: int | None, top_p: float | None, seed: int, complaint: str
) -> None:
    with pytest.raises(UsageError) as raised:
        make_sampler(temperature, top_k, top_p, seed)
    assert complaint in str(raised.value)
    assert raised.value.exit_code == 2
