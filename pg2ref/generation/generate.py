"""Step 8 of 9: the loop that turns scores into an answer, one token at a time. Next: outputs/detection.py.

The library yields events and prints nothing.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pg2ref.arrays import Array
from pg2ref.generation.sampling import Sampler, log_probabilities
from pg2ref.model.paligemma import PaliGemma, embed_prefix, prefill, read, step
from pg2ref.trace import Prefixed, Tap, no_tap

FinishReason = Literal["stop", "length"]  # an end-of-text token came; max_new_tokens were made


@dataclass(frozen=True)
class Alternative:
    """A token that could have stood in a place."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class TokenEvent:
    """One token of the answer. `logprob` is under the model's own distribution, before temperature and filters."""

    token_id: int
    logprob: float
    alternatives: tuple[Alternative, ...]  # the most likely tokens of this place, best first
    seconds: float  # since the event before it, or since the start
    finish_reason: FinishReason | None  # set on the last event


def generate(
    model: PaliGemma,
    image_embeddings_ID: Array,
    prompt_ids: Sequence[int],
    *,
    sampler: Sampler,
    max_new_tokens: int,
    num_alternatives: int = 0,
    use_cache: bool = True,
    tap: Tap = no_tap,
) -> Iterator[TokenEvent]:
    """Yield tokens until an end-of-text token, which is the last event, or until `max_new_tokens`.

    `use_cache` False computes the decoder anew over everything for each token: slow, the same numbers, a check.
    """
    started = time.perf_counter()
    chosen: list[int] = []
    for logits_V in next_logits(model, image_embeddings_ID, prompt_ids, chosen, max_new_tokens, use_cache, tap):
        token_id = sampler(logits_V)
        chosen.append(token_id)
        finish = finish_reason(model, token_id, len(chosen), max_new_tokens)
        now = time.perf_counter()
        yield make_event(logits_V, token_id, num_alternatives, now - started, finish)
        started = now
        if finish:
            return


def finish_reason(model: PaliGemma, token_id: int, length: int, max_new_tokens: int) -> FinishReason | None:
    """Why an answer of that length ends with its newest token, if it does."""
    if token_id in model.config.eos_token_ids:
        return "stop"
    return "length" if length == max_new_tokens else None


def next_logits(
    model: PaliGemma,
    image_embeddings_ID: Array,
    prompt_ids: Sequence[int],
    chosen: Sequence[int],
    max_new_tokens: int,
    use_cache: bool,
    tap: Tap,
) -> Iterator[Array]:
    """Scores of the next token, again and again; the caller appends what it chose to `chosen` in between."""
    capacity, prefix_length = len(prompt_ids) + max_new_tokens, len(prompt_ids)
    cache = model.empty_cache(capacity, prefix_length)
    yield prefill(model, image_embeddings_ID, prompt_ids, cache, tap=tap)
    while True:
        step_tap = Prefixed(tap, f"step_{len(chosen):03d}/")
        if use_cache:
            yield step(model, [chosen[-1]], [cache], tap=step_tap)[-1]
        else:
            embeddings_TD = embed_prefix(model, image_embeddings_ID, prompt_ids, chosen)
            fresh = model.empty_cache(len(embeddings_TD), prefix_length)
            yield read(model, embeddings_TD, [fresh], tap=step_tap)[-1]


def make_event(
    logits_V: Array, token_id: int, num_alternatives: int, seconds: float, finish: FinishReason | None
) -> TokenEvent:
    """The event of a chosen token, with its log-probability and its best rivals."""
    logprob_V = log_probabilities(logits_V)
    best = np.argsort(-logprob_V, kind="stable")[:num_alternatives] if num_alternatives else ()
    alternatives = tuple(Alternative(int(i), float(logprob_V[i])) for i in best)
    return TokenEvent(token_id, float(logprob_V[token_id]), alternatives, seconds, finish)
