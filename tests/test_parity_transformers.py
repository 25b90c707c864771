"""Every stage of every small model against live Transformers 5.23 in float32, greedy answers, and the file formats."""

from pathlib import Path

import golden_records
import numpy as np
import pytest
import small_models
from closeness import assert_close
from small_models import CASES, MAX_NEW_TOKENS

import pg2ref
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


def test_a_padded_batch_answers_as_its_rows_alone(tmp_path: Path) -> None:
    """Transformers with two prompts of different length, padded on the left, against two runs of ours."""
    import torch
    import transformers_stages

    case = CASES["base"]
    small_models.write_folder(tmp_path, case)
    long, short = small_models.make_inputs(case), small_models.make_inputs(case._replace(text_length=5), seed=6)
    prompts = [inputs.ids[: inputs.prompt_length] for inputs in (long, short)]
    pads = [0, len(prompts[0]) - len(prompts[1])]
    ids = torch.tensor([[0] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)])
    present = torch.tensor([[0] * pad + [1] * len(prompt) for pad, prompt in zip(pads, prompts, strict=True)])
    reference = transformers_stages.load_model(tmp_path)
    output = reference.generate(
        input_ids=ids,
        pixel_values=torch.from_numpy(np.concatenate([long.pixel_values, short.pixel_values])),
        token_type_ids=torch.zeros_like(ids),
        attention_mask=present,
        max_new_tokens=12,
        do_sample=False,
    )
    model = small_models.open_model(tmp_path)
    for row, inputs in zip(output[:, ids.shape[1] :].tolist(), (long, short), strict=True):
        assert golden_records.answer(model, inputs, 12) == row


def test_from_image_file_and_prompt_to_text(small_folder: Path) -> None:
    """Everything at once: the folder loads in both, and file and prompt become the same ids, pixels and answer."""
    import torch
    import transformers
    from PIL import Image

    scene = Path(__file__).parent / "data" / "scene.png"
    processor = transformers.AutoProcessor.from_pretrained(small_folder, use_fast=False)
    reference = transformers.PaliGemmaForConditionalGeneration.from_pretrained(small_folder, dtype=torch.float32).eval()
    model = pg2ref.load(small_folder, precision="f32")
    for prompt in ("caption en", "detect red circle ; blue square"):
        inputs = processor(images=Image.open(scene), text="<image>" + prompt, return_tensors="pt")
        prepared = model.prepare(scene, prompt)
        assert prepared.prompt_ids == inputs["input_ids"][0].tolist()
        np.testing.assert_array_equal(prepared.pixel_values[0], inputs["pixel_values"][0].numpy())
        output = reference.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answer = output[0, inputs["input_ids"].shape[1] :].tolist()
        result = model.generate(scene, prompt, max_new_tokens=MAX_NEW_TOKENS)
        assert list(result.token_ids) == answer
        assert result.text == processor.decode(answer, skip_special_tokens=True)


def test_what_transformers_saves_loads(small_folder: Path, tmp_path: Path) -> None:
    """The other direction: the folder as Transformers 5.23 saves it, under its own names, gives the same numbers."""
    import torch
    import transformers

    reference = transformers.PaliGemmaForConditionalGeneration.from_pretrained(small_folder, dtype=torch.bfloat16)
    reference.save_pretrained(tmp_path)
    transformers.AutoProcessor.from_pretrained(small_folder, use_fast=False).save_pretrained(tmp_path)
    scene = Path(__file__).parent / "data" / "scene.png"
    saved, released = (
        pg2ref.load(folder).generate(scene, "ocr", max_new_tokens=8) for folder in (tmp_path, small_folder)
    )
    assert saved.logprobs == released.logprobs


def test_greedy_answers_are_equal(case_name: str, folder: Path) -> None:
    import transformers_stages

    inputs = small_models.make_inputs(CASES[case_name])._replace(prefix_length=0)  # its generate() marks the prefix
    prompt = inputs.ids[: inputs.prompt_length]
    reference = transformers_stages.load_model(folder)
    expected = transformers_stages.generate(
        reference,
        inputs.pixel_values,
        prompt,
        MAX_NEW_TOKENS,
        use_cache=small_models.has_window(CASES[case_name]),
    )
    assert golden_records.answer(small_models.open_model(folder), inputs, MAX_NEW_TOKENS) == expected
