"""The run that two records are of: the same model on the same inputs, to be run again in whole or in parts."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pg2ref.arrays import Array, widen
from pg2ref.errors import InputError, UsageError, brief, shown_name
from pg2ref.inputs.image import Picture, pixel_values
from pg2ref.model.paligemma import PaliGemma
from pg2ref.parity.bugs.run import Run
from pg2ref.parity.difference import F64
from pg2ref.parity.records import Record, json_fact, step_of
from pg2ref.parity.trace_file import IDS
from pg2ref.policy import RESIZE_POLICIES, WINDOW_POLICIES


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
    check_model(model, reference)
    policy = _fact(reference, "policy", is_policy) or {"window": model.window_policy, "resize": "bicubic"}
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
    if max(answer_ids, default=0) >= model.config.text.vocab_size:
        raise InputError(f"answer_ids has {max(answer_ids)}, beyond the model's vocabulary: record it again")
    return Run(model, tuple(pixels), tuple(ids.tolist()), answer_ids, pictures=tuple(pictures))


def check_model(model: PaliGemma, reference: Record) -> None:
    """Refuse a model with another config than the reference names.

    Raises:
        InputError: the reference garbles what it names.
        UsageError: the model is another.
    """
    config = _fact(reference, "config", lambda value: isinstance(value, dict))
    if config and config != json.loads(json.dumps(asdict(model.config))):
        name = shown_name(str((_fact(reference, "model", lambda value: isinstance(value, dict)) or {}).get("id")))
        raise UsageError(f"{reference.name} was recorded from another model: give the one it names, {name}")


def _fact(record: Record, name: str, is_valid: Callable[[Any], bool]) -> Any:
    if name not in record.facts:
        return None
    value = json_fact(record, name)
    if not is_valid(value):
        raise InputError(f"{record.name}: {name} is {brief(record.facts[name])}, which no trace says: record it again")
    return value


def is_ids(value: Any) -> bool:
    """Whether a value of JSON is a list of token ids."""
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**31 for one in value)


def is_policy(value: Any) -> bool:
    """Whether it names the choices of a run."""
    is_known = isinstance(value, dict) and {"window", "resize"} <= value.keys()
    return is_known and value["window"] in WINDOW_POLICIES and value["resize"] in RESIZE_POLICIES


def _answer_ids(record: Record) -> tuple[int, ...]:
    """The tokens that its steps have read: another model's own answer may be another."""
    steps = set(map(step_of, record.stages)) - {0}
    return tuple((_fact(record, "answer_ids", is_ids) or [])[: len(steps)])


def _pixels(record: Record) -> list[Array]:
    """Pixel values of every image, as far as they are there in full."""
    names = sorted(
        (name for name in record.stages if re.fullmatch(r"(image_\d+/)?pixel_values", name)),
        key=lambda name: int(name[6:].partition("/")[0]) if name.startswith("image_") else 0,
    )
    return [widen(record.stages[name].read(), F64) for name in names if record.stages[name].summary is None]
