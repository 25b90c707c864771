"""What `detect`, `segment` and `generate` share: objects on stdout, and pictures of them in files."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pg2ref.cli.files import check_writable, write_bytes
from pg2ref.cli.options import (
    computation_options,
    decorator_of,
    json_option,
    length_option,
    model_option,
    open_model,
    quiet_option,
)
from pg2ref.cli.progress import LayerProgress, ProgressLine
from pg2ref.cli.stdin import read_stdin
from pg2ref.errors import Pg2RefError, UsageError
from pg2ref.policy import LOC_SCALES

if TYPE_CHECKING:
    from pg2ref.outputs.result import Result

MOST_NAME_CHARACTERS = 40


# How locations and mask codes are read.
reading_options = decorator_of(
    click.option(
        "--vae",
        metavar="FILE",
        help="The mask decoder, big_vision's vae-oid.npz. Default: the one in the model's folder.",
    ),
    click.option(
        "--loc-scale",
        type=click.Choice(LOC_SCALES),
        help="The location that stands for the far edge. Default: 1023, as in training.",
    ),
)

# The same, and pictures to write.
object_options = decorator_of(
    click.option("--overlay", metavar="FILE", help="Write the image with boxes, masks and labels on it, as PNG."),
    click.option("--masks", metavar="DIR", help="Write each object's mask, a black and white PNG, into this folder."),
    reading_options,
)

# All that `detect` and `segment` take; `find` takes them on.
find_options = decorator_of(
    click.argument("image"),
    click.argument("what", nargs=-1, required=True, metavar="WORDS..."),
    model_option,
    length_option,
    object_options,
    computation_options,
    json_option,
    quiet_option,
)


def check_pictures(overlay: str | None, masks: str | None) -> None:
    """Raises UsageError for files that could not be written, before anything is computed."""
    check_writable(overlay)
    if masks is None:
        return
    parent = os.path.dirname(os.path.realpath(masks))
    if not masks or (os.path.exists(masks) and not os.path.isdir(masks)) or not os.path.isdir(parent):
        raise UsageError(f"{masks!r}: expected a folder for masks, or a new name in an existing one")
    if not os.access(masks if os.path.isdir(masks) else parent, os.W_OK):
        raise UsageError(f"{masks}: may not be written: choose another folder")


def write_pictures(result: "Result", overlay: str | None, masks: str | None) -> None:
    """The overlay, and a mask a file: `00-red-circle.png`, numbered as the objects are."""
    if overlay is None and masks is None:
        return
    import numpy as np

    from pg2ref.outputs.png import png_bytes

    if overlay is not None:
        write_bytes(overlay, png_bytes(np.asarray(result.overlay())))
    if masks is not None:
        try:
            os.makedirs(masks, exist_ok=True)
        except OSError as error:
            raise Pg2RefError(f"{masks}: cannot be made ({error.strerror}): choose another place") from error
        for i, one in enumerate(result.objects):
            if one.mask_YX is not None:
                write_bytes(str(Path(masks) / f"{i:02d}-{_file_name(one.label)}.png"), png_bytes(one.mask_YX))


def _file_name(label: str) -> str:
    """The letters and digits of a label, of any script; what lies between becomes a dash."""
    return re.sub(r"[\W_]+", "-", label).strip("-")[:MOST_NAME_CHARACTERS] or "object"


def find(
    task: str,
    image: str,
    what: tuple[str, ...],
    *,
    name: str | None,
    max_new_tokens: int,
    overlay: str | None,
    masks: str | None,
    as_json: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Run `detect` or `segment`: write the prompt, print the objects, write the pictures."""
    check_pictures(overlay, masks)
    sources, prompt = read_stdin((image,), f"{task} {' ; '.join(what)}")
    line = ProgressLine(enabled=not quiet)
    model = open_model(name, quiet=quiet, **choices)
    answer = model.stream(sources, prompt, max_new_tokens=max_new_tokens, tap=LayerProgress(line, model, len(sources)))
    try:
        for _ in answer:
            line.show("answering", len(answer.events), max_new_tokens, f"{len(answer.events)} tokens")
    finally:
        line.clear()
    result = answer.result()
    click.echo(result.to_json() if as_json else "".join(map(row, result.objects)), nl=as_json)
    write_pictures(result, overlay, masks)
    if not quiet:
        say_what_is_wrong(result, wants_objects=True)
        bare = sum(one.mask_YX is None for one in result.objects)
        if task == "segment" and model.mask_decoder is not None and bare:
            click.echo(f"pg2ref: warning: {bare} of {len(result.objects)} objects came without a mask", err=True)


def row(one: Any) -> str:
    """Label, box in pixels and score, with a tab between them."""
    label = " ".join(one.label.split()) or "-"
    numbers = "\t".join(f"{edge:.1f}" for edge in one.box_xyxy_px)
    return f"{label}\t{numbers}\t{'-' if one.score is None else f'{one.score:.3f}'}\n"


def say_what_is_wrong(result: "Result", *, wants_objects: bool) -> None:
    """Warnings on stderr; where objects are wanted, also what of the answer is none."""
    messages = [*result.warnings, *(result.problems if wants_objects else ())]
    if wants_objects and result.finish_reason == "length":
        messages.append(f"the answer was cut off after {len(result.tokens)} tokens: raise -n")
    if wants_objects and not result.objects:
        messages.append(f"no object found, the model answered {' '.join(result.text.split())[:200]!r}")
    for message in messages:
        click.echo(f"pg2ref: warning: {message}", err=True)
