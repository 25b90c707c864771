"""The built-in model against Transformers: from the record that tools/make_builtin_golden.py made, and live."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from closeness import assert_close
from PIL import Image
from safetensors import safe_open

import pg2ref
from pg2ref.arrays import Array
from pg2ref.demo import builtin
from pg2ref.demo.scene import draw_scene
from pg2ref.model import paligemma
from pg2ref.trace import Trace

RECORD = Path(__file__).parent / "golden" / "shapes" / "record.safetensors"
LIVE = (  # seed, size as drawn, prompt
    (11, 224, "caption en"),
    (12, 112, "caption de"),
    (13, 448, "detect red circle ; blue square ; black star"),
    (14, 224, "segment yellow heart"),
    (15, 224, "ocr"),
    (16, 168, "answer en what colour is the star?"),
)


class Record(NamedTuple):
    arrays: dict[str, Array]
    metadata: dict[str, str]

    @property
    def questions(self) -> list[tuple[int, str]]:
        """Seed and prompt, in order."""
        numbered = sorted((int(key), value) for key, value in self.metadata.items() if key.isdigit())
        return [(int(value.split()[0]), value.split(" ", 1)[1]) for _, value in numbered]


@pytest.fixture(scope="module")
def record() -> Record:
    with safe_open(RECORD, "np") as stored:
        return Record({key: stored.get_tensor(key) for key in stored.keys()}, stored.metadata())  # noqa: SIM118


@pytest.fixture(scope="module")
def model() -> pg2ref.Model:
    return pg2ref.load()


def picture(seed: int, size_px: int) -> Image.Image:
    return Image.fromarray(draw_scene(seed, size_px).pixels_YXC)


def stages_of(model: pg2ref.Model, asked: Image.Image, prompt: str, dtype: type = np.float32) -> dict[str, Array]:
    """All stages of reading image and prompt, scores of every row."""
    prepared, numbers, trace = model.prepare(asked, prompt), model.numbers._replace(dtype=np.dtype(dtype)), Trace()
    embeddings = paligemma.encode_images(numbers, prepared.pixel_values, tap=trace)
    paligemma.forward(numbers, embeddings, prepared.prompt_ids, len(prepared.prompt_ids), tap=trace)
    return trace.stages


def test_the_record_asks_every_kind(record: Record) -> None:
    assert {prompt.split()[0] for _, prompt in record.questions} == {
        "caption",
        "detect",
        "segment",
        "ocr",
        "answer",
    }
    assert sum(len(record.arrays[f"{number}/answer"]) for number in range(len(record.questions))) >= 30
    assert record.metadata["transformers"] == "5.23.0"


def test_answers_are_those_of_the_record(record: Record, model: pg2ref.Model) -> None:
    for number, (seed, prompt) in enumerate(record.questions):
        expected = record.arrays[f"{number}/answer"].tolist()
        asked = picture(seed, model.config.vision.image_size)
        assert model.prepare(asked, prompt).prompt_ids == record.arrays[f"{number}/prompt_ids"].tolist()
        if expected:
            answer = model.generate(asked, prompt, max_new_tokens=len(expected))
            assert list(answer.token_ids) == expected, prompt


def test_stages_are_those_of_the_record(record: Record, model: pg2ref.Model) -> None:
    for number, (seed, prompt) in enumerate(record.questions):
        stages = stages_of(model, picture(seed, model.config.vision.image_size), prompt)
        recorded = {key.removeprefix("stage/"): array for key, array in record.arrays.items() if "stage/" in key}
        assert len(recorded) >= 5
        for stage, expected in recorded.items() if number == 0 else ():
            assert_close(stages[stage], expected, "stage/golden", terms=1)
        assert_close(stages["logits"][-1], record.arrays[f"{number}/logits"], "stage/golden", terms=1)


@pytest.mark.parity
def test_every_stage_agrees_with_transformers(model: pg2ref.Model) -> None:
    import transformers_stages

    theirs = transformers_stages.load_model(builtin.FOLDER)
    for seed, size_px, prompt in LIVE[:3]:
        asked = picture(seed, size_px)
        prepared = model.prepare(asked, prompt)
        ids, pixels = prepared.prompt_ids, prepared.pixel_values[0][None]
        truth, ours = (stages_of(model, asked, prompt, dtype) for dtype in (np.float64, np.float32))
        recorded = transformers_stages.record(theirs, pixels, ids, len(ids))
        assert set(recorded) == set(ours)
        for stage, exact in truth.items():
            assert_close(ours[stage], exact, "stage/float32", terms=1)
            assert_close(recorded[stage].reshape(exact.shape), exact, "stage/transformers float32", terms=1)


@pytest.mark.parity
def test_transformers_answers_alike_from_file_and_prompt(model: pg2ref.Model, tmp_path: Path) -> None:
    """The same folder, opened by Transformers' own processor and classes."""
    import torch
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(builtin.FOLDER, use_fast=False)
    theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(builtin.FOLDER, dtype=torch.float32).eval()
    for seed, size_px, prompt in LIVE:
        picture(seed, size_px).save(tmp_path / "scene.png")
        inputs = processor(images=Image.open(tmp_path / "scene.png"), text="<image>" + prompt, return_tensors="pt")
        prepared = model.prepare(tmp_path / "scene.png", prompt)
        assert prepared.prompt_ids == inputs["input_ids"][0].tolist()
        np.testing.assert_array_equal(prepared.pixel_values[0], inputs["pixel_values"][0].numpy())
        answer = theirs.generate(**inputs, max_new_tokens=40, do_sample=False)[0, len(prepared.prompt_ids) :].tolist()
        result = model.generate(tmp_path / "scene.png", prompt, max_new_tokens=40)
        assert list(result.token_ids) == answer
        assert result.text == processor.decode(answer, skip_special_tokens=True)
