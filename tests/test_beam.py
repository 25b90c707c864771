"""Beam search: against every possible answer, against the rule in plain loops, and its caches on a real model."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_models
from oracles import naive_beam
from small_models import CASES

from pg2ref.arrays import Array
from pg2ref.generation import beam
from pg2ref.generation.generate import TokenEvent, generate
from pg2ref.generation.sampling import greedy, log_probabilities
from pg2ref.model import paligemma
from pg2ref.model.paligemma import PaliGemma


class FakeCache:
    """Remembers the tokens it has read; to share one between two beams would mix them up."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens = list(tokens)

    def fork(self) -> "FakeCache":
        return FakeCache(self.tokens)


class FakeModel:
    """Random scores of the next token after each beginning of an answer; the end grows likelier with its length."""

    def __init__(self, seed: int, vocab_size: int, end_ids: tuple[int, ...], towards_end: float) -> None:
        self.config = SimpleNamespace(eos_token_ids=end_ids)
        self.seed, self.vocab_size, self.towards_end = seed, vocab_size, towards_end
        self.steps = 0

    def empty_cache(self, capacity_tokens: int, prefix_length: int) -> FakeCache:
        return FakeCache()

    def logits(self, tokens: Sequence[int]) -> Array:
        rng = np.random.default_rng([self.seed, len(tokens), *tokens])
        logits_V = 2 * rng.standard_normal(self.vocab_size)
        logits_V[list(self.config.eos_token_ids)] += self.towards_end * (len(tokens) - 3)
        return logits_V

    def scores(self, tokens: Sequence[int]) -> list[float]:
        return log_probabilities(self.logits(tokens)).tolist()


def fake_prefill(model: FakeModel, embeddings: Any, prompt: Any, cache: FakeCache, *, tap: Any) -> Array:
    return model.logits(cache.tokens)


def fake_step(model: FakeModel, token_ids: Sequence[int], caches: Sequence[FakeCache], *, tap: Any) -> Array:
    assert len({id(cache) for cache in caches}) == len(caches)
    model.steps += 1
    for token_id, cache in zip(token_ids, caches, strict=True):
        cache.tokens.append(token_id)
    return np.stack([model.logits(cache.tokens) for cache in caches])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam, "prefill", fake_prefill)
    monkeypatch.setattr(beam, "step", fake_step)


def search(model: Any, num_beams: int, max_tokens: int, alternatives: int = 0) -> tuple[TokenEvent, ...]:
    return beam.beam_search(
        model, np.zeros((0, 1)), [], num_beams=num_beams, max_new_tokens=max_tokens, num_alternatives=alternatives
    )


def ids_and_score(events: Sequence[TokenEvent]) -> tuple[tuple[int, ...], float]:
    return tuple(event.token_id for event in events), math.fsum(event.logprob for event in events)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("end_ids", [(1,), (4, 2)])
@pytest.mark.parametrize("seed", range(8))
def test_with_many_beams_it_finds_the_best_of_all_answers(seed: int, end_ids: tuple[int, ...]) -> None:
    model = FakeModel(seed, 5, end_ids, towards_end=1.0)
    score, answer = naive_beam.best_of_all(model.scores, end_ids, 5, 4)
    found = ids_and_score(search(model, num_beams=4**3, max_tokens=4))
    assert found == (answer, pytest.approx(score, abs=1e-12))


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("num_beams", [1, 2, 3, 7])
@pytest.mark.parametrize("towards_end", [0.3, 1.5])
@pytest.mark.parametrize("end_ids", [(1,), (4, 2)])
def test_it_is_the_rule_of_big_vision(num_beams: int, towards_end: float, end_ids: tuple[int, ...]) -> None:
    lengths = set()
    for seed in range(40):
        model = FakeModel(seed, 11, end_ids, towards_end)
        score, answer = naive_beam.beam_search(model.scores, end_ids, num_beams, max_tokens=6)
        found = ids_and_score(search(model, num_beams, max_tokens=6))
        assert found == (answer, pytest.approx(score, abs=1e-12))
        lengths.add(len(answer))
    assert len(lengths) >= 3


@pytest.mark.usefixtures("fake")
def test_more_beams_find_more() -> None:
    """Which is what they are for: on the average of many tables, and strictly on some."""
    scores = {
        n: [ids_and_score(search(FakeModel(seed, 11, (1,), 1.5), n, 6))[1] for seed in range(30)] for n in (1, 2, 5, 20)
    }
    means = [float(np.mean(scores[n])) for n in (1, 2, 5, 20)]
    assert means == sorted(means)
    assert means[0] < means[-1]


@pytest.mark.usefixtures("fake")
def test_one_token_is_an_end() -> None:
    model = FakeModel(3, 11, (6, 9), towards_end=0.0)
    (event,) = search(model, num_beams=3, max_tokens=1)
    assert event.token_id == max((6, 9), key=lambda i: model.scores(())[i])
    assert event.finish_reason == "stop"
    assert model.steps == 0


@pytest.mark.usefixtures("fake")
def test_it_stops_when_no_beam_can_overtake() -> None:
    model = FakeModel(3, 11, (1,), towards_end=0.0)
    model.logits = lambda tokens: np.where(np.arange(11) == 1, 5.0, 0.0)  # type: ignore[method-assign]
    (event,) = search(model, num_beams=3, max_tokens=50)
    assert event.token_id == 1
    assert model.steps == 0


@pytest.mark.usefixtures("fake")
def test_events_of_an_answer() -> None:
    model = FakeModel(4, 11, (1,), towards_end=1.5)
    events = search(model, num_beams=4, max_tokens=7, alternatives=3)
    assert len(events) >= 3
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + ["stop"]
    tokens: list[int] = []
    for event in events:
        scores = model.scores(tokens)
        assert event.logprob == pytest.approx(scores[event.token_id], abs=1e-12)
        assert [a.token_id for a in event.alternatives] == sorted(range(11), key=lambda i: -scores[i])[:3]
        assert [a.logprob for a in event.alternatives] == sorted(scores, reverse=True)[:3]
        assert event.seconds >= 0
        tokens.append(event.token_id)


# On a small real model: the caches hold what each beam has read.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("beam")
    small_models.write_folder(path, CASES["base"])
    return path


def model_that_goes_on(folder: Path, end_rank: int) -> tuple[PaliGemma, Array, list[int]]:
    """A model that is sure of its tokens, and whose end token is a rare one, so that the search is long.

    In float64, so that two ways of computing differ by less than any two beams.
    """
    model = small_models.open_model(folder, np.float64)
    decoder = model.params.language_model
    sharp = decoder._replace(norm=np.full(decoder.norm.shape, 5.0, np.float32))
    text = dataclasses.replace(model.config.text, final_logit_softcapping=30.0)
    model = model._replace(params=model.params._replace(language_model=sharp))
    inputs = small_models.make_inputs(CASES["base"])
    prompt = inputs.ids[: inputs.prompt_length]
    embeddings = paligemma.encode_images(model, list(inputs.pixel_values))
    model = model._replace(config=dataclasses.replace(model.config, text=text))
    first_V = paligemma.forward(model, embeddings, prompt, len(prompt))[-1]
    end_id = int(np.argsort(first_V)[end_rank])
    return model._replace(config=dataclasses.replace(model.config, eos_token_ids=(end_id,))), embeddings, prompt


def test_beams_score_as_if_computed_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, embeddings, prompt = model_that_goes_on(folder, end_rank=0)
    seen: list[beam.Beam] = []
    forks: list[int] = []
    extend, fork = beam.extend, beam.KVCache.fork

    def recording_extend(*arguments: Any) -> list[beam.Beam]:
        beams = extend(*arguments)
        assert len({id(live.cache) for live in beams}) == len(beams)
        seen.extend(beams)
        return beams

    def counting_fork(cache: Any) -> Any:
        forks.append(cache.length)
        return fork(cache)

    monkeypatch.setattr(beam, "extend", recording_extend)
    monkeypatch.setattr(beam.KVCache, "fork", counting_fork)
    events = beam.beam_search(model, embeddings, prompt, num_beams=5, max_new_tokens=7)
    assert {len(live.tokens) for live in seen} >= {1, 2, 3}
    assert len(set(forks)) >= 2  # not at the first step alone

    def row_scores(tokens: Sequence[int]) -> tuple[float, Array]:
        logits_TV = paligemma.forward(model, embeddings, [*prompt, *tokens], len(prompt))[len(prompt) - 1 :]
        logprobs = [log_probabilities(row)[token] for row, token in zip(logits_TV, tokens, strict=False)]
        return math.fsum(logprobs), logits_TV[-1]

    for live in seen:
        score, logits_V = row_scores([event.token_id for event in live.tokens])
        assert live.score == pytest.approx(score, abs=1e-9)
        np.testing.assert_allclose(live.logits_V, logits_V, atol=1e-9)
    ids, score = ids_and_score(events)
    assert row_scores(ids)[0] == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("end_rank", [0, 60, 150])
def test_the_rule_on_a_real_model(folder: Path, num_beams: int, end_rank: int) -> None:
    model, embeddings, prompt = model_that_goes_on(folder, end_rank)

    def scorer(tokens: Sequence[int]) -> list[float]:
        return log_probabilities(paligemma.forward(model, embeddings, [*prompt, *tokens], len(prompt))[-1]).tolist()

    score, answer = naive_beam.beam_search(scorer, model.config.eos_token_ids, num_beams, max_tokens=5)
    events = beam.beam_search(model, embeddings, prompt, num_beams=num_beams, max_new_tokens=5)
    assert ids_and_score(events) == (answer, pytest.approx(score, abs=1e-9))


def test_one_beam_follows_the_greedy_path(folder: Path) -> None:
    model, embeddings, prompt = model_that_goes_on(folder, end_rank=0)
    found = beam.beam_search(model, embeddings, prompt, num_beams=1, max_new_tokens=6)
    greedily = list(generate(model, embeddings, prompt, sampler=greedy, max_new_tokens=6))
    assert [event.token_id for event in found[:-1]] == [event.token_id for event in greedily[: len(found) - 1]]
