"""The loop: where it stops, what its events say, and that the cache changes nothing."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
from small_models import CASES

from pg2ref.arrays import Array
from pg2ref.generation.generate import TokenEvent, generate
from pg2ref.generation.sampling import greedy, log_probabilities, make_sampler
from pg2ref.model import paligemma
from pg2ref.model.paligemma import PaliGemma
from pg2ref.policy import WINDOW_POLICIES
from pg2ref.trace import Trace

NEVER = 1 << 20  # an end token that no model says


class Start:
    """A model and what it is asked."""

    def __init__(self, folder: Path, dtype: Any) -> None:
        inputs = small_models.make_inputs(CASES["base"])
        self.model = with_ends(small_models.open_model(folder, dtype), NEVER)
        self.prompt = inputs.ids[: inputs.prompt_length]
        self.embeddings = paligemma.encode_images(self.model, list(inputs.pixel_values))

    def __call__(self, max_new_tokens: int, *end_ids: int, **options: Any) -> list[TokenEvent]:
        model = with_ends(self.model, *end_ids) if end_ids else self.model
        options = {"sampler": greedy, **options}
        return list(generate(model, self.embeddings, self.prompt, max_new_tokens=max_new_tokens, **options))


def with_ends(model: PaliGemma, *end_ids: int) -> PaliGemma:
    return model._replace(config=dataclasses.replace(model.config, eos_token_ids=end_ids))


@pytest.fixture(scope="module", params=[np.float32, np.float64], ids=["f32", "f64"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("generate")
    small_models.write_folder(folder, CASES["base"])
    return Start(folder, request.param)


def ids(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events]


def test_it_stops_after_so_many_tokens(start: Start) -> None:
    events = start(11)
    assert len(events) == 11
    assert [event.finish_reason for event in events] == [None] * 10 + ["length"]
    assert ids(start(4)) == ids(events)[:4]
    assert [event.finish_reason for event in start(1)] == ["length"]


@pytest.mark.parametrize("extra", [(), (0, NEVER)])
def test_it_stops_at_an_end_token_and_keeps_it(start: Start, extra: tuple[int, ...]) -> None:
    free = ids(start(11))
    place = max(free.index(token_id) for token_id in free)  # the last token that had not come before
    assert place >= 2
    events = start(11, free[place], *extra)
    assert ids(events) == free[: place + 1]
    assert [event.finish_reason for event in events] == [None] * place + ["stop"]
    assert start(place + 1, free[place])[-1].finish_reason == "stop"  # an end in the last place is an end
    assert start(place, free[place])[-1].finish_reason == "length"


def test_logprobs_are_those_of_the_whole_sequence(start: Start) -> None:
    events = start(8, num_alternatives=5)
    logits_TV = paligemma.forward(start.model, start.embeddings, [*start.prompt, *ids(events)], len(start.prompt))
    for event, logits_V in zip(events, logits_TV[len(start.prompt) - 1 :], strict=False):
        logprob_V = log_probabilities(logits_V)
        assert event.logprob == pytest.approx(logprob_V[event.token_id], abs=1e-4)
        assert event.token_id == int(np.argmax(logits_V))
        assert [a.token_id for a in event.alternatives] == np.argsort(-logits_V, kind="stable")[:5].tolist()
        np.testing.assert_allclose([a.logprob for a in event.alternatives], np.sort(logprob_V)[:-6:-1], atol=1e-4)
        assert event.alternatives[0].token_id == event.token_id
        assert event.alternatives[0].logprob == event.logprob


def test_logprobs_are_the_model_s_own_whatever_is_drawn(start: Start) -> None:
    events = start(8, sampler=make_sampler(2.0, 40, 0.9, seed=5), num_alternatives=3)
    logits_TV = paligemma.forward(start.model, start.embeddings, [*start.prompt, *ids(events)], len(start.prompt))
    for event, logits_V in zip(events, logits_TV[len(start.prompt) - 1 :], strict=False):
        assert event.logprob == pytest.approx(log_probabilities(logits_V)[event.token_id], abs=1e-4)
        assert [a.logprob for a in event.alternatives] == sorted((a.logprob for a in event.alternatives), reverse=True)
    assert ids(events) != ids(start(8))
    assert ids(events) == ids(start(8, sampler=make_sampler(2.0, 40, 0.9, seed=5)))


def test_no_alternatives_unless_asked_for(start: Start) -> None:
    assert {event.alternatives for event in start(3)} == {()}
    assert {len(event.alternatives) for event in start(3, num_alternatives=1000)} == {304}


@pytest.mark.parametrize("policy", WINDOW_POLICIES)
def test_the_cache_changes_no_token(start: Start, policy: str) -> None:
    model = start.model._replace(window_policy=policy)
    answers = [
        list(generate(model, start.embeddings, start.prompt, sampler=greedy, max_new_tokens=9, use_cache=use_cache))
        for use_cache in (True, False)
    ]
    assert ids(answers[0]) == ids(answers[1])
    assert len(answers[0]) == 9
    np.testing.assert_allclose(*([event.logprob for event in answer] for answer in answers), atol=1e-4)


def test_the_sampler_sees_the_scores_of_every_place(start: Start) -> None:
    seen: list[Array] = []

    def second_best(logits_V: Array) -> int:
        seen.append(logits_V.copy())
        return int(np.argsort(-logits_V)[1])

    events = start(5, sampler=second_best)
    logits_TV = paligemma.forward(start.model, start.embeddings, [*start.prompt, *ids(events)], len(start.prompt))
    np.testing.assert_allclose(np.stack(seen), logits_TV[len(start.prompt) - 1 : -1], atol=1e-4)


def test_tokens_come_one_by_one(start: Start) -> None:
    """Nothing is computed before it is asked for: a stream can be left at any token."""
    trace = Trace(lambda stage: stage == "logits")
    calls: list[int] = []

    def counting(logits_V: Array) -> int:
        calls.append(1)
        return greedy(logits_V)

    events: Iterator[TokenEvent] = generate(
        start.model, start.embeddings, start.prompt, sampler=counting, max_new_tokens=20, tap=trace
    )
    assert not calls
    next(events)
    assert len(calls) == 1
    assert trace.stages["logits"].shape == (1, 304)
    next(events)
    assert len(calls) == 2


def test_seconds_are_counted(start: Start) -> None:
    assert all(0 <= event.seconds < 60 for event in start(3))
