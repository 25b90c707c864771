"""A trace is enough to run again what it was made from."""

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


@pytest.fixture(scope="module")
def model(small_folder: Path) -> pg2ref.api.Model:
    return pg2ref.load(small_folder, precision="f64", window="big_vision")


@pytest.fixture(scope="module")
def reference(model: pg2ref.api.Model, tmp_path_factory: pytest.TempPathFactory) -> Record:
    path = tmp_path_factory.mktemp("traces") / "run.safetensors"
    record(model, [museum.SCENE, museum.SCENE], "<image><image>caption en", path, points=lambda stage: True, steps=3)
    return open_record(path)


def test_the_run_is_the_one_that_was_recorded(model: pg2ref.api.Model, reference: Record) -> None:
    run = run_behind(reference, model.numbers._replace(window_policy="transformers"))
    assert run.model.window_policy == "big_vision"
    assert len(run.pixel_values) == 2
    assert len(run.answer_ids) == 3 < len(json.loads(reference.facts["answer_ids"]))
    assert diagnose(run, reference).is_clean


def test_a_bug_in_the_model_that_made_a_trace_is_named(
    model: pg2ref.api.Model, reference: Record, small_folder: Path, tmp_path: Path
) -> None:
    """OTHER has read the prompt alone, the reference three tokens more."""
    broken = pg2ref.load(small_folder, precision="f32", backend="numpy")
    broken.numbers = BUGS["head-transposed"].inject(run_behind(reference, broken.numbers)).model
    other = tmp_path / "other"
    record(broken, [museum.SCENE, museum.SCENE], "<image><image>caption en", other, points=lambda stage: True)
    assert diagnose(run_behind(reference, model.numbers), open_record(other)).names == ("head-transposed",)


def test_a_summary_needs_the_images(model: pg2ref.api.Model, tmp_path: Path) -> None:
    record(model, [museum.SCENE], "ocr", tmp_path / "stats", points=lambda stage: True, mode="stats")
    reference = open_record(tmp_path / "stats")
    with pytest.raises(UsageError, match="holds no pixel values in full: give the images"):
        run_behind(reference, model.numbers)
    picture = read_image(museum.SCENE)
    run = run_behind(reference, model.numbers, [picture])
    np.testing.assert_array_equal(run.pixel_values[0], model.prepare(museum.SCENE, "ocr").pixel_values[0])
    assert run.pictures == (picture,)


def test_another_model_is_refused(reference: Record) -> None:
    with pytest.raises(UsageError, match="was recorded from another model: give the one it names, small"):
        run_behind(reference, museum.make_run().model)


def test_another_file_is_refused(model: pg2ref.api.Model) -> None:
    with pytest.raises(InputError, match="expected a trace made by `pg2ref trace`"):
        run_behind(museum.record_of(museum.stages_of(museum.make_run())), model.numbers)
