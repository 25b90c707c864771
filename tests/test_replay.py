"""A trace is enough to run again what it was made from."""

import dataclasses
import json
from pathlib import Path

import museum
import numpy as np
import pytest

import pg2ref
from pg2ref.errors import InputError, UsageError
from pg2ref.inputs.image import read_image
from pg2ref.parity.bugs.collection import BUGS
from pg2ref.parity.diagnose import diagnose
from pg2ref.parity.records import Record, open_record
from pg2ref.parity.replay import run_behind
from pg2ref.recording.record import record

NOTHING = Record("nothing", {}, {})


@pytest.fixture(scope="module")
def model(small_folder: Path) -> pg2ref.api.Model:
    return pg2ref.load(small_folder, precision="f64", window="big_vision")


@pytest.fixture(scope="module")
def reference(model: pg2ref.api.Model, tmp_path_factory: pytest.TempPathFactory) -> Record:
    path = tmp_path_factory.mktemp("traces") / "run.safetensors"
    record(model, [museum.SCENE, museum.SCENE], "<image><image>caption en", path, points=lambda stage: True, steps=3)
    return open_record(path)


def test_the_run_is_the_one_that_was_recorded(model: pg2ref.api.Model, reference: Record) -> None:
    run = run_behind(model.numbers._replace(window_policy="transformers"), reference, NOTHING)
    assert run.model.window_policy == "big_vision"
    assert len(run.pixel_values) == 2
    assert len(run.answer_ids) == 3 < len(json.loads(reference.facts["answer_ids"]))
    assert diagnose(run, reference).is_clean


def test_a_bug_in_the_model_that_made_a_trace_is_named(
    model: pg2ref.api.Model, reference: Record, small_folder: Path, tmp_path: Path
) -> None:
    """OTHER has read the prompt alone, the reference three tokens more."""
    broken = pg2ref.load(small_folder, precision="f32", backend="numpy")
    broken.numbers = BUGS["head-transposed"].inject(run_behind(broken.numbers, reference, NOTHING)).model
    other = tmp_path / "other"
    record(broken, [museum.SCENE, museum.SCENE], "<image><image>caption en", other, points=lambda stage: True)
    found = open_record(other)
    assert diagnose(run_behind(model.numbers, reference, found), found).names == ("head-transposed",)


def test_a_summary_needs_the_images(model: pg2ref.api.Model, tmp_path: Path) -> None:
    record(model, [museum.SCENE], "ocr", tmp_path / "stats", points=lambda stage: True, mode="stats")
    reference = open_record(tmp_path / "stats")
    with pytest.raises(UsageError, match=r"are needed in full, and neither .*stats nor nothing has both"):
        run_behind(model.numbers, reference, NOTHING)
    picture = read_image(museum.SCENE)
    run = run_behind(model.numbers, reference, NOTHING, [picture])
    np.testing.assert_array_equal(run.pixel_values[0], model.prepare(museum.SCENE, "ocr").pixel_values[0])
    assert run.pictures == (picture,)


def test_another_model_is_refused(reference: Record) -> None:
    with pytest.raises(UsageError, match="was recorded from another model: give the one it names, small"):
        run_behind(museum.make_run().model, reference, NOTHING)


def test_garbled_facts_are_refused(model: pg2ref.api.Model, reference: Record) -> None:
    garbled = dataclasses.replace(reference, facts={**reference.facts, "policy": "bicubic"})
    with pytest.raises(InputError, match="policy is 'bicubic', which no trace says: record it again"):
        run_behind(model.numbers, garbled, NOTHING)


def test_the_other_stands_in_for_inputs(model: pg2ref.api.Model, reference: Record) -> None:
    """And a reference that says nothing of policies is run with the model's."""
    few = Record("few", {}, {"logits": reference.stages["logits"]})
    run = run_behind(model.numbers, few, reference)
    assert run.model.window_policy == "big_vision"
    assert len(run.pixel_values) == 2
    assert len(run.answer_ids) == 3
    assert run.prompt_ids == run_behind(model.numbers, reference, NOTHING).prompt_ids
