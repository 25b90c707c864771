"""The run behind a trace of ours: the same model on the same inputs, to be run again in whole or in parts."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pg2ref.arrays import Array
from pg2ref.errors import InputError, UsageError
from pg2ref.inputs.image import Picture, pixel_values
from pg2ref.model.paligemma import PaliGemma
from pg2ref.parity.bugs.run import Run
from pg2ref.parity.records import Record
from pg2ref.parity.trace_file import IDS


def run_behind(reference: Record, model: PaliGemma, pictures: Sequence[Picture] = ()) -> Run:
    """What was run to make a trace, with the policies it names.

    Args:
        reference: the trace.
        model: the same checkpoint; its precision may be another.
        pictures: the images that were given, before resizing: needed if the trace holds no pixel values in full.

    Raises:
        InputError: it is no trace of pg2ref's.
        UsageError: the model is another, or the pixel values are not there.
    """
    try:
        policy, config = json.loads(reference.facts["policy"]), json.loads(reference.facts["config"])
        answer_ids = json.loads(reference.facts["answer_ids"])
        prompt_ids = reference.stages[IDS].read().tolist()
    except (KeyError, ValueError):
        raise InputError(f"{reference.name}: expected a trace made by `pg2ref trace`: it says too little") from None
    if config != json.loads(json.dumps(asdict(model.config))):
        raise UsageError(f"{reference.name} was recorded from another model: give the one it names, {_id(reference)}")
    steps = {name.partition("/")[0] for name in reference.stages if re.match(r"step_\d+/", name)}
    return Run(
        model._replace(window_policy=policy["window"]),
        tuple(_recorded_pixels(reference)) or _resized(reference, model, pictures, policy["resize"]),
        tuple(prompt_ids),
        tuple(answer_ids[: len(steps)]),
        tuple(pictures),
    )


def _recorded_pixels(reference: Record) -> list[Array]:
    names = [name for name in reference.stages if re.fullmatch(r"(image_\d+/)?pixel_values", name)]
    return [reference.stages[name].read() for name in names if reference.stages[name].summary is None]


def _resized(reference: Record, model: PaliGemma, pictures: Sequence[Picture], resize: str) -> tuple[Array, ...]:
    if not pictures:
        raise UsageError(f"{reference.name} holds no pixel values in full: give the images it was made from, too")
    return tuple(pixel_values(picture, model.config.vision.image_size, resize) for picture in pictures)


def _id(reference: Record) -> Any:
    return json.loads(reference.facts["model"])["id"]
