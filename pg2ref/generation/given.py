"""The scores of every place of an answer that is chosen greedily, or given: what two models are compared by."""

from collections.abc import Sequence

import numpy as np

from pg2ref.arrays import Array
from pg2ref.generation.generate import generate
from pg2ref.generation.sampling import greedy, log_probabilities
from pg2ref.model.paligemma import PaliGemma, encode_images
from pg2ref.trace import Tap, no_tap


def scores_of_answer(
    model: PaliGemma,
    pixel_values: Sequence[Array],
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    given: Sequence[int] | None = None,
    tap: Tap = no_tap,
) -> tuple[list[int], list[Array]]:
    """The greedy answer, or the one that is given, and `logits_V` of each of its places."""
    logits: list[Array] = []

    def choose(logits_V: Array) -> int:
        logits.append(logits_V)
        return greedy(logits_V) if given is None else given[len(logits) - 1]

    embeddings_ID = encode_images(model, pixel_values, tap=tap)
    events = generate(model, embeddings_ID, prompt_ids, sampler=choose, max_new_tokens=max_new_tokens, tap=tap)
    return [event.token_id for event in events], logits


def divergence(expected_V: Array, actual_V: Array) -> float:
    """Kullback-Leibler divergence in nats of one place's distribution from the expected one, both as logits."""
    expected_V, actual_V = log_probabilities(expected_V), log_probabilities(actual_V)
    return float(np.sum(np.exp(expected_V) * (expected_V - actual_V)))
