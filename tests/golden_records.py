"""Reads the golden records, and compares a model with one: what the golden test and the injected faults do."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import small_models
from closeness import assert_close
from safetensors import safe_open
from small_models import Inputs

from pg2ref.arrays import Array
from pg2ref.generation.generate import generate
from pg2ref.generation.sampling import greedy
from pg2ref.model import paligemma
from pg2ref.model.paligemma import PaliGemma
from pg2ref.parity.bugs.run import Run

GOLDEN = Path(__file__).parent / "golden"


class Record(NamedTuple):
    """What Transformers computed for a case."""

    folder: Path
    inputs: Inputs
    stages: dict[str, Array]
    answer: list[int] | None
    metadata: dict[str, str]


def read_record(case_name: str) -> Record:
    folder = GOLDEN / case_name
    with safe_open(folder / "record.safetensors", "np") as stored:
        arrays = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - no mapping
        metadata = stored.metadata()
    inputs = Inputs(
        arrays["input/pixel_values"],
        arrays["input/ids"].tolist(),
        int(metadata["prefix_length"]),
        int(metadata["prompt_length"]),
    )
    stages = {key.removeprefix("stage/"): value for key, value in arrays.items() if key.startswith("stage/")}
    answer = arrays["answer"].tolist() if "answer" in arrays else None
    return Record(folder, inputs, stages, answer, metadata)


def run_of(record: Record) -> Run:
    """The case as a bug changes it."""
    ids, length = tuple(record.inputs.ids), record.inputs.prompt_length
    model = small_models.open_model(record.folder)
    return Run(model, tuple(record.inputs.pixel_values), ids[:length], ids[length:])


def inputs_of(run: Run) -> Inputs:
    """What a run is fed with, where the whole prompt is prefix."""
    length = len(run.prompt_ids)
    return Inputs(np.stack(run.pixel_values), [*run.prompt_ids, *run.answer_ids], length, length)


def check_stages(model: PaliGemma, record: Record) -> None:
    """Every recorded stage agrees, in the order of computation, so that the first to differ is the one named."""
    ours = small_models.our_stages(model, record.inputs)
    assert set(record.stages) <= set(ours)
    for stage, value in ours.items():
        if stage in record.stages:
            expected = record.stages[stage]
            assert value.size == expected.size, f"{stage}: shape {value.shape}, recorded {expected.shape}"
            assert_close(value, expected.reshape(value.shape), "stage/golden", terms=1)


def check_pixels(make: Callable[[Array, int], Array]) -> None:
    """`make(image_YXC, side)` gives, bit for bit, what Transformers' image processor made of each stored image."""
    with safe_open(GOLDEN / "inputs" / "pixels.safetensors", "np") as stored:
        arrays = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    expected = {key: value for key, value in arrays.items() if key.startswith("pixel_values/")}
    assert len(expected) == 10
    for key, value in expected.items():
        _, size, side = key.split("/")
        np.testing.assert_array_equal(make(arrays[f"image/{size}"], int(side)), value, err_msg=key, strict=True)


def answer(model: PaliGemma, inputs: Inputs, max_new_tokens: int) -> list[int]:
    """Greedy ids of a case's prompt."""
    embeddings = paligemma.encode_images(model, list(inputs.pixel_values))
    prompt = inputs.ids[: inputs.prompt_length]
    return [e.token_id for e in generate(model, embeddings, prompt, sampler=greedy, max_new_tokens=max_new_tokens)]


def check_answer(model: PaliGemma, record: Record) -> None:
    """The greedy answer is Transformers', token by token."""
    expected = np.array(record.answer)
    np.testing.assert_array_equal(np.array(answer(model, record.inputs, small_models.MAX_NEW_TOKENS)), expected)
