"""Beam search by the authors' rule (big_vision, trainers/proj/paligemma/predict_fns.py, `_beam_decode`).

An answer's score is the sum of its log-probabilities, its end included, with no length penalty. Ending never
occupies a beam: at every step each live beam also competes as a finished answer, and only the best finished one
is kept. The search stops when no live beam can overtake it, as sums only fall. Unlike big_vision, whose first
step skips the final soft cap, every step here uses the model's capped logits.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.generation.generate import TokenEvent, make_event
from pg2ref.generation.sampling import log_probabilities
from pg2ref.model.kv_cache import KVCache
from pg2ref.model.paligemma import PaliGemma, prefill, step
from pg2ref.trace import Tap, no_tap


@dataclass
class Beam:
    """A live beginning of an answer."""

    tokens: tuple[TokenEvent, ...]
    score: float  # sum of log-probabilities
    cache: KVCache
    logits_V: Array  # of the token after `tokens`


class Extension(NamedTuple):
    """A beam and a token that may follow it."""

    score: float
    beam: Beam
    token_id: int


def beam_search(
    model: PaliGemma,
    image_embeddings_ID: Array,
    prompt_ids: Sequence[int],
    *,
    num_beams: int,
    max_new_tokens: int,
    num_alternatives: int = 0,
    tap: Tap = no_tap,
) -> tuple[TokenEvent, ...]:
    """The best finished answer found within `max_new_tokens`, its end-of-text token included.

    The search goes on after that answer is found; the last event's seconds count what is left of it.
    """
    begun = started = time.perf_counter()
    cache = model.empty_cache(len(prompt_ids) + max_new_tokens, len(prompt_ids))
    live = [Beam((), 0.0, cache, prefill(model, image_embeddings_ID, prompt_ids, cache, tap=tap))]
    best: tuple[float, tuple[TokenEvent, ...]] = (-np.inf, ())
    for length in range(1, max_new_tokens + 1):
        extensions: list[Extension] = []
        for beam in live:
            scores_V = beam.score + log_probabilities(beam.logits_V)
            end_id = max(model.config.eos_token_ids, key=lambda token_id: float(scores_V[token_id]))
            if scores_V[end_id] > best[0]:
                now = time.perf_counter()
                end = make_event(beam.logits_V, end_id, num_alternatives, now - started, "stop")
                best = (float(scores_V[end_id]), (*beam.tokens, end))
            scores_V[list(model.config.eos_token_ids)] = -np.inf
            candidates = np.argsort(-scores_V, kind="stable")[:num_beams]
            extensions += [Extension(float(scores_V[i]), beam, int(i)) for i in candidates]
        extensions.sort(key=lambda extension: -extension.score)
        if length == max_new_tokens or extensions[0].score < best[0]:
            break
        live = extend(model, extensions[:num_beams], num_alternatives, started, tap)
        started = time.perf_counter()
    missing = time.perf_counter() - begun - sum(event.seconds for event in best[1])
    return (*best[1][:-1], replace(best[1][-1], seconds=best[1][-1].seconds + missing))


def extend(
    model: PaliGemma, chosen: Sequence[Extension], num_alternatives: int, started: float, tap: Tap
) -> list[Beam]:
    """Let all chosen tokens be read together, one row a beam; a beam that goes two ways gets a second cache."""
    taken: set[int] = set()
    caches = []
    for extension in chosen:
        cache = extension.beam.cache
        caches.append(cache.fork() if id(cache) in taken else cache)
        taken.add(id(cache))
    logits_TV = step(model, [extension.token_id for extension in chosen], caches, tap=tap)
    seconds = time.perf_counter() - started
    beams = []
    for (score, beam, token_id), cache, logits_V in zip(chosen, caches, logits_TV, strict=True):
        event = make_event(beam.logits_V, token_id, num_alternatives, seconds, None)
        beams.append(Beam((*beam.tokens, event), score, cache, logits_V))
    return beams
