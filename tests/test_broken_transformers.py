"""Transformers' model with each bug of the museum, patched in torch, is named rightly, and never called clean."""

import golden_records
import museum
import pytest

from pg2ref.parity.blocks import blocks_of
from pg2ref.parity.bugs.collection import BUGS
from pg2ref.parity.bugs.run import Run
from pg2ref.parity.diagnose import ONE_LEVEL, ROUNDING, Walk, diagnose, joined_stages, segments_of
from pg2ref.parity.records import Record

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def truth() -> Run:
    return museum.make_run()


def record(name: str | None, run: Run, precision: str = "f32") -> Record:
    import broken_transformers
    import torch
    import transformers_stages

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = transformers_stages.load_model(golden_records.GOLDEN / "base", dtype)
    given = broken_transformers.Given(run.pixel_values[0], run.pictures[0], run.prompt_ids, run.answer_ids)
    return museum.record_of(broken_transformers.record(model, given, name))


def test_every_bug_has_its_double_in_torch() -> None:
    import broken_transformers

    assert set(broken_transformers.BREAKS) == set(BUGS)


SEEN = {"f32": 4e-7, "bf16": 9.3e-3}  # of the right model, the largest error that a block makes


@pytest.mark.parametrize("precision", ROUNDING)
def test_the_right_model_is_clean_by_far(truth: Run, precision: str) -> None:
    found = record(None, truth, precision)
    assert diagnose(truth, found, precision=precision).is_clean
    stages, known = joined_stages(found), {}
    walk, largest = Walk(stages, ROUNDING[precision]), 0.0
    for segment in segments_of(blocks_of(truth), stages):
        largest = max(largest, *walk.errors(truth, segment, known).values())
        known = walk.after(truth, segment, known)
    assert 0.3 * SEEN[precision] < largest < 1.1 * SEEN[precision] < 0.5 * ROUNDING[precision]


@pytest.mark.parametrize("name", BUGS)
def test_each_bug_is_named(truth: Run, name: str) -> None:
    found = diagnose(truth, record(name, truth))
    assert found.names == (name,)
    (cause,) = found.causes
    assert cause.rivals == ()
    assert cause.left is not None
    assert cause.left < (ROUNDING["f32"] if name != "no-antialias" else ONE_LEVEL)
