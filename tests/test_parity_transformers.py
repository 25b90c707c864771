"""Every stage of every small model against live Transformers 5.23 in float32, greedy answers, and the file formats."""

from pathlib import Path

import golden_records
import numpy as np
import pytest
import small_models
from closeness import assert_close
from small_models import CASES, MAX_NEW_TOKENS

from pg2ref.arrays import Array

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=list(CASES))
def case_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(case_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(case_name)
    small_models.write_folder(path, CASES[case_name])
    return path


@pytest.fixture(scope="module")
def theirs(case_name: str, folder: Path) -> dict[str, Array]:
    import transformers_stages

    inputs = small_models.make_inputs(CASES[case_name])
    model = transformers_stages.load_model(folder)
    return transformers_stages.record(model, inputs.pixel_values, inputs.ids, inputs.prefix_length)


def test_every_stage_agrees(case_name: str, folder: Path, theirs: dict[str, Array]) -> None:
    inputs = small_models.make_inputs(CASES[case_name])
    truth = small_models.our_stages(small_models.open_model(folder, np.float64), inputs)
    ours = small_models.our_stages(small_models.open_model(folder), inputs)
    assert set(ours) == set(theirs)
    for stage, exact in truth.items():
        assert_close(ours[stage], exact, "stage/float32", terms=1)
        assert_close(theirs[stage].reshape(exact.shape), exact, "stage/transformers float32", terms=1)


def test_greedy_answers_are_equal(case_name: str, folder: Path) -> None:
    import transformers_stages

    inputs = small_models.make_inputs(CASES[case_name])._replace(prefix_length=0)  # its generate() marks the prefix
    prompt = inputs.ids[: inputs.prompt_length]
    reference = transformers_stages.load_model(folder)
    expected = transformers_stages.generate(reference, inputs.pixel_values, prompt, MAX_NEW_TOKENS)
    assert golden_records.answer(small_models.open_model(folder), inputs, MAX_NEW_TOKENS) == expected
