"""The run that two records are of: the same model on the same inputs, to be run again in whole or in parts."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pg2ref.arrays import Array, widen
from pg2ref.errors import InputError, UsageError
from pg2ref.inputs.image import Picture, pixel_values
from pg2ref.model.paligemma import PaliGemma
from pg2ref.parity.bugs.run import Run
from pg2ref.parity.difference import F64
from pg2ref.parity.records import Record
from pg2ref.parity.trace_file import IDS


def run_behind(model: PaliGemma, reference: Record, other: Record, pictures: Sequence[Picture] = ()) -> Run:
    """What both were given, with the policies that REFERENCE names, and the answer that OTHER has read.

    Args:
        model: the checkpoint of the reference; its precision may be another.
        reference: a trace.
        other: stands in for inputs that the reference does not hold. Where it names no answer, it was given the
            reference's.
        pictures: the images before resizing. They stand in for pixel values that the reference does not hold in full,
            and let a diagnosis see how another has resized them.

    Raises:
        InputError: the reference contradicts itself.
        UsageError: the model is another, or nobody has the ids or the pixels in full.
    """
    facts = {name: _fact(reference, name) for name in ("policy", "config")}
    if facts["config"] and facts["config"] != json.loads(json.dumps(asdict(model.config))):
        name = (_fact(reference, "model") or {}).get("id")
        raise UsageError(f"{reference.name} was recorded from another model: give the one it names, {name}")
    policy = facts["policy"] or {"window": model.window_policy, "resize": "bicubic"}
    ids = next((record.stages[IDS].read() for record in (reference, other) if IDS in record.stages), None)
    pixels = _pixels(reference)
    if not pixels and pictures:
        side = model.config.vision.image_size
        pixels = [pixel_values(picture, side, policy["resize"]) for picture in pictures]
    pixels = pixels or _pixels(other)
    if ids is None or not pixels:
        raise UsageError(
            f"{IDS} and pixel_values are needed in full, and neither {reference.name} nor {other.name} has both: "
            "record REFERENCE with --mode full, or name the images with --image"
        )
    model = model._replace(window_policy=policy["window"])
    answer_ids = _answer_ids(other) or _answer_ids(reference)
    return Run(model, tuple(pixels), tuple(ids.tolist()), answer_ids, pictures=tuple(pictures))


def _fact(record: Record, name: str) -> Any:
    try:
        return json.loads(record.facts[name]) if name in record.facts else None
    except ValueError:
        raise InputError(f"{record.name}: {name} is no JSON: record it again") from None


def _answer_ids(record: Record) -> tuple[int, ...]:
    """The tokens that its steps have read: another model's own answer may be another."""
    steps = {name.partition("/")[0] for name in record.stages if name.startswith("step_")}
    return tuple((_fact(record, "answer_ids") or [])[: len(steps)])


def _pixels(record: Record) -> list[Array]:
    """Pixel values of every image, as far as they are there in full."""
    names = sorted(
        (name for name in record.stages if re.fullmatch(r"(image_\d+/)?pixel_values", name)),
        key=lambda name: int(name[6:].partition("/")[0]) if name.startswith("image_") else 0,
    )
    return [widen(record.stages[name].read(), F64) for name in names if record.stages[name].summary is None]
