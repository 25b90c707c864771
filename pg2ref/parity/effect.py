"""What one bug does to an answer: the model with it beside the right one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pg2ref.api import Model
from pg2ref.arrays import Array
from pg2ref.generation.given import divergence, scores_of_answer
from pg2ref.generation.sampling import probabilities
from pg2ref.inputs.image import ImageSource, read_image
from pg2ref.parity.bugs.run import Bug, Run
from pg2ref.parity.difference import measure
from pg2ref.trace import Tap, Trace, no_tap

BEST = 5  # tokens shown of each place


@dataclass(frozen=True)
class Candidate:
    """A token that could stand in a place."""

    token_id: int
    probability: float


@dataclass(frozen=True)
class Place:
    """One place of the right model's answer; the broken one was given the same tokens before it."""

    right: tuple[Candidate, ...]  # the likeliest, best first
    broken: tuple[Candidate, ...]
    kl: float  # nats, of the broken distribution from the right one
    max_change: float  # of a logit


@dataclass(frozen=True)
class StageChange:
    """The first stage that a bug changes; `nrmse` is None where the bug changes its shape."""

    stage: str
    nrmse: float | None


@dataclass(frozen=True)
class Effect:
    """Everything `pg2ref break` shows. `first_change` is None where none of the compared stages changes."""

    right_ids: tuple[int, ...]
    broken_ids: tuple[int, ...]  # what the broken model answers by itself
    places: tuple[Place, ...]
    first_change: StageChange | None


def prepare_run(model: Model, images: Sequence[ImageSource], prompt: str) -> Run:
    """A model and what it is asked, as a bug changes it."""
    pictures = tuple(read_image(image) for image in images)
    prepared = model.prepare(pictures, prompt)
    return Run(model.numbers, tuple(prepared.pixel_values), tuple(prepared.prompt_ids), pictures=pictures)


def effect_of(bug: Bug, run: Run, max_new_tokens: int) -> Effect:
    """Let both answer, and the broken one score the right one's answer too."""
    broken, traces = bug.inject(run), (Trace(is_compared), Trace(is_compared))
    with np.errstate(all="ignore"):  # a bug may well make numbers overflow
        answer, right = answer_of(run, max_new_tokens, tap=traces[0])
        _, given = answer_of(broken, len(answer), given=answer, tap=traces[1])
        broken_ids, _ = answer_of(broken, max_new_tokens)
    places = tuple(compare_place(*pair) for pair in zip(right, given, strict=True))
    return Effect(tuple(answer), tuple(broken_ids), places, first_change(traces[0], traces[1]))


def is_compared(stage: str) -> bool:
    """The pixels, queries, logits and the end of each block, of later tokens too: some bugs show in them alone."""
    return stage.endswith(("/out", "/query", "embeddings", "norm", "pixel_values", "logits"))


def first_change(right: Trace, broken: Trace) -> StageChange | None:
    """The first stage that is not the same to the bit."""
    for stage, expected in right.stages.items():
        actual = broken.stages[stage]
        if actual.shape != expected.shape:
            return StageChange(stage, None)
        if not np.array_equal(expected, actual):
            return StageChange(stage, measure(expected, actual).nrmse)
    return None


def compare_place(right_V: Array, broken_V: Array) -> Place:
    """Two distributions over the vocabulary."""
    change_V = broken_V.astype(np.float64) - right_V
    return Place(best(right_V), best(broken_V), divergence(right_V, broken_V), float(np.abs(change_V).max()))


def best(logits_V: Array) -> tuple[Candidate, ...]:
    """The likeliest tokens."""
    probability_V = probabilities(logits_V)
    return tuple(Candidate(int(i), float(probability_V[i])) for i in np.argsort(-probability_V, kind="stable")[:BEST])


def answer_of(
    run: Run, max_new_tokens: int, *, given: Sequence[int] | None = None, tap: Tap = no_tap
) -> tuple[list[int], list[Array]]:
    """The answer, and the scores of each place of it."""
    return scores_of_answer(run.model, run.pixel_values, run.prompt_ids, max_new_tokens, given=given, tap=tap)
