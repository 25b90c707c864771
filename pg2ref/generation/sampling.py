"""Choosing a token from its scores: greedy, or drawn at random after temperature, top-k and top-p.

The order and the rules are those of Transformers 5.23 (generation/logits_process.py), so the distributions are
equal for the same settings; the random numbers are NumPy's, so the tokens drawn for a seed are not. Nothing is
filtered unless asked for, where Transformers takes a top-k of 50 when it samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pg2ref.arrays import Array
from pg2ref.errors import UsageError

Sampler: TypeAlias = Callable[[Array], int]


def greedy(logits_V: Array) -> int:
    """The best token; of equals, the one with the lowest id."""
    return int(np.argmax(logits_V))


@dataclass(frozen=True)
class RandomSampler:
    """Draws from the filtered distribution with a generator of its own."""

    temperature: float
    top_k: int | None
    top_p: float | None
    rng: np.random.Generator

    def __call__(self, logits_V: Array) -> int:
        """One token id."""
        probabilities_V = filtered_probabilities(logits_V, self.temperature, self.top_k, self.top_p)
        return int(self.rng.choice(probabilities_V.size, p=probabilities_V))


def make_sampler(temperature: float, top_k: int | None, top_p: float | None, seed: int) -> Sampler:
    """Greedy for temperature 0, else a RandomSampler.

    Raises:
        UsageError: a value out of range, or a filter without a temperature to draw with.
    """
    if not 0 <= temperature < np.inf:
        raise UsageError(f"temperature is {temperature}, expected 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top-k is {top_k}, expected 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top-p is {top_p}, expected more than 0 and at most 1")
    if seed < 0:
        raise UsageError(f"seed is {seed}, expected 0 or more")
    if temperature == 0:
        if top_k is not None or top_p is not None:
            raise UsageError("top-k and top-p filter what is drawn at random: give a temperature above 0 with them")
        return greedy
    return RandomSampler(temperature, top_k, top_p, np.random.default_rng(seed))


def filtered_probabilities(logits_V: Array, temperature: float, top_k: int | None, top_p: float | None) -> Array:
    """What is drawn from, in float64: temperature, then top-k (ties kept), then top-p (the best always kept)."""
    logits_V = (logits_V.astype(np.float64) - logits_V.max()) / temperature  # the best stays finite, however cold
    if top_k is not None and top_k < logits_V.size:
        kth_best = np.partition(logits_V, -top_k)[-top_k]
        logits_V = np.where(logits_V < kth_best, -np.inf, logits_V)
    if top_p is not None and top_p < 1:
        ascending = np.argsort(logits_V, kind="stable")
        cumulative = np.cumsum(probabilities(logits_V[ascending]))
        dropped = ascending[:-1][cumulative[:-1] <= 1 - top_p]
        logits_V[dropped] = -np.inf
    return probabilities(logits_V)


def probabilities(logits_V: Array) -> Array:
    """Softmax of one row of scores, in float64."""
    return np.exp(log_probabilities(logits_V))


def log_probabilities(logits_V: Array) -> Array:
    """Log-softmax of one row of scores, in float64; -inf stays -inf."""
    shifted_V = logits_V.astype(np.float64) - logits_V.max()
    return shifted_V - np.log(np.exp(shifted_V).sum())
