"""Many answers side by side: prompts are read one after the other, then all decode together, a row each.

A token costs one reading of all weights, and one reading serves many rows. An answer gets the numbers that it gets
alone, bit for bit, whoever is beside it and whenever it came: rows do not mix (model/gemma2.py), and kernels sum a few
rows in the order in which they sum one. Only NumPy's own matrix products do not; there, one at a time is exact.
"""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pg2ref.arrays import Array
from pg2ref.generation.generate import TokenEvent, finish_reason, make_event
from pg2ref.generation.options import AnswerOptions
from pg2ref.generation.sampling import Sampler
from pg2ref.model.kv_cache import KVCache
from pg2ref.model.paligemma import TOGETHER, PaliGemma, prefill, step
from pg2ref.trace import Guard, NotFiniteError

Key = TypeVar("Key", bound=Hashable)


@dataclass
class Live:
    """An answer in the making."""

    options: AnswerOptions
    sampler: Sampler
    cache: KVCache
    logits_V: Array  # of the token after the last
    started: float  # when the last token was chosen, or the prompt begun
    token_id: int = -1  # the last one
    length: int = 0  # tokens so far


class Together(Generic[Key]):
    """The answers that are being made; each has a key of the caller's, and leaves after its last token."""

    def __init__(self, model: PaliGemma) -> None:
        self.model = model
        self.live: dict[Key, Live] = {}

    def start(self, key: Key, image_embeddings_ID: Array, prompt_ids: Sequence[int], options: AnswerOptions) -> None:
        """Read a prompt; its first token comes with the next `step`.

        Raises:
            NotFiniteError: a number outgrew its type; the others are as they were.
        """
        started = time.perf_counter()
        cache = self.model.empty_cache(len(prompt_ids) + options.max_new_tokens, len(prompt_ids))
        logits_V = prefill(self.model, image_embeddings_ID, prompt_ids, cache, tap=Guard())
        self.live[key] = Live(options, options.sampler(), cache, logits_V, started)

    def step(self) -> list[tuple[Key, TokenEvent | NotFiniteError]]:
        """One more token of every answer, its own error where a number outgrew its type."""
        outcomes: list[tuple[Key, TokenEvent | NotFiniteError]] = []
        going_on: list[Key] = []
        for key, one in list(self.live.items()):
            event = self._choose(one)
            outcomes.append((key, event))
            if event.finish_reason:
                del self.live[key]
            else:
                going_on.append(key)
        for first in range(0, len(going_on), TOGETHER):
            outcomes += self._read(going_on[first : first + TOGETHER])
        return outcomes

    def _choose(self, one: Live) -> TokenEvent:
        token_id = one.sampler(one.logits_V)
        one.token_id, one.length = token_id, one.length + 1
        now = time.perf_counter()
        finish = finish_reason(self.model, token_id, one.length, one.options.max_new_tokens)
        event = make_event(one.logits_V, token_id, one.options.logprobs, now - one.started, finish)
        one.started = now
        return event

    def _read(self, keys: Sequence[Key]) -> list[tuple[Key, NotFiniteError]]:
        """Let these read the tokens they chose; those that cannot leave, and are returned."""
        lives = [self.live[key] for key in keys]
        try:
            logits_TV = step(self.model, [one.token_id for one in lives], [one.cache for one in lives], tap=Guard())
        except NotFiniteError as error:  # no cache has advanced, so each can be asked alone
            if len(keys) > 1:
                return [failed for key in keys for failed in self._read([key])]
            del self.live[keys[0]]
            return [(keys[0], error)]
        for one, logits_V in zip(lives, logits_TV, strict=True):
            one.logits_V = logits_V
        return []
