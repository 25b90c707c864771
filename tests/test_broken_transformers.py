"""Transformers' model with each bug of the museum, patched in torch, is named rightly, and never called clean."""

from pathlib import Path

import golden_records
import museum
import numpy as np
import pytest

from pg2ref.parity.bugs.collection import BUGS
from pg2ref.parity.bugs.run import Run
from pg2ref.parity.diagnose import ROUNDING, diagnose
from pg2ref.parity.records import Record

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def truth() -> Run:
    return museum.make_run()


def record(name: str | None, run: Run) -> Record:
    import broken_transformers
    import transformers_stages

    folder: Path = golden_records.GOLDEN / "base"
    given = broken_transformers.Given(run.pixel_values[0], run.pictures[0], run.prompt_ids, run.answer_ids)
    return museum.record_of(broken_transformers.record(transformers_stages.load_model(folder), given, name))


def test_every_bug_has_its_double_in_torch() -> None:
    import broken_transformers

    assert set(broken_transformers.BREAKS) == set(BUGS)


def test_the_right_model_is_clean_by_far(truth: Run) -> None:
    found = record(None, truth)
    assert diagnose(truth, found).is_clean
    assert np.isfinite(found.stages["logits"].read()).all()


@pytest.mark.parametrize("name", BUGS)
def test_each_bug_is_named(truth: Run, name: str) -> None:
    found = diagnose(truth, record(name, truth))
    assert found.names == (name,)
    (cause,) = found.causes
    assert cause.rivals == ()
    assert cause.left is not None
    assert cause.left < (ROUNDING["f32"] if name != "no-antialias" else 0.012)
