"""The rows of a batch: a line of JSON each, or an image of a folder each.

    {"id": "kitchen-7", "image": "kitchen/7.jpg", "prompt": "detect cat"}
    {"id": 8, "images": ["left.png", "right.png"], "prompt": "answer en both show a dog"}
    {"video": "clip.mp4", "frames": 16, "stride": 30, "prompt": "caption en", "max_new_tokens": 40}

Exactly one of `image`, `images` and `video` is needed. `id` is text or a whole number, the line's number if missing;
`prompt` may be missing where the batch has one; `frames` and `stride` are those of inputs/video.py. Paths are
relative to the folder that the file lies in. Empty lines are passed over, but counted.

A line that is wrong is a row too, with its error: it is reported in its place and stops nothing. Lines are read one by
one, and of one line never more than MOST_LINE_BYTES.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pg2ref.errors import InputError, Pg2RefError, brief
from pg2ref.inputs.image import ImageSource
from pg2ref.inputs.video import DEFAULT_FRAMES, list_pictures, read_frames

MOST_LINE_BYTES = 1 << 20
FIELDS = {  # name -> what it must be
    "id": (str, int),
    "image": (str,),
    "images": (list,),
    "video": (str,),
    "frames": (int,),
    "stride": (int,),
    "prompt": (str,),
    "max_new_tokens": (int,),
}


@dataclass(frozen=True)
class Row:
    """A question. With an `error` the line could not be read, and the rest is empty."""

    number: int  # of the line, or of the image in its folder, from 1
    id: str | int
    prompt: str = ""
    images: tuple[str, ...] = ()
    video: str | None = None
    frames: int = DEFAULT_FRAMES
    stride: int | None = None
    max_new_tokens: int | None = None
    error: Pg2RefError | None = None

    def sources(self) -> list[ImageSource]:
        """Its images, or the frames of its video, read now."""
        if self.video is not None:
            return list(read_frames(self.video, frames=self.frames, stride=self.stride))
        return list(self.images)


def read_rows(lines: BinaryIO, folder: Path, prompt: str | None) -> Iterator[Row]:
    """The rows of a file of JSON lines; `prompt` is for those without one, `folder` where their paths start."""
    for number, line in _filled_lines(lines):
        if len(line) > MOST_LINE_BYTES:
            yield Row(number, number, error=InputError(f"line {number}: longer than {MOST_LINE_BYTES:,} bytes: cut it"))
        else:
            yield _parse(line, number, folder, prompt)


def count_rows(lines: BinaryIO) -> int:
    """How many rows `read_rows` finds; the stream is at its start afterwards."""
    count = sum(1 for _ in _filled_lines(lines))
    lines.seek(0)
    return count


def _filled_lines(lines: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their numbers; of one that is too long, the beginning."""
    number = 0
    while line := lines.readline(MOST_LINE_BYTES + 1):
        number += 1
        if line.strip() or len(line) > MOST_LINE_BYTES:
            yield number, line
        while len(line) > MOST_LINE_BYTES and not line.endswith(b"\n"):
            line = lines.readline(MOST_LINE_BYTES + 1)


def _parse(line: bytes, number: int, folder: Path, prompt: str | None) -> Row:
    row_id: str | int = number
    try:
        fields = _fields(line)
        row_id = _checked("id", fields.pop("id", number))
        fields = {name: _checked(name, value) for name, value in fields.items()}
        return Row(number, row_id, **_question(fields, folder, prompt))
    except InputError as error:
        return Row(number, row_id, error=InputError(f"line {number}: {error}"))


def _fields(line: bytes) -> dict[str, Any]:
    """The JSON object; nulls are as missing ones."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, an endless number, a thousand brackets
        raise InputError(f"expected a JSON object ({' '.join(str(error).split())})") from None
    if not isinstance(parsed, dict):
        raise InputError(f"expected a JSON object, got {type(parsed).__name__}")
    return {name: value for name, value in parsed.items() if value is not None}


def _checked(name: str, value: Any) -> Any:
    """A field of a known name and of its type."""
    if name not in FIELDS:
        raise InputError(f"unknown field {brief(name)}, expected {', '.join(FIELDS)}")
    if not isinstance(value, FIELDS[name]) or isinstance(value, bool):
        expected = " or ".join(kind.__name__ for kind in FIELDS[name])
        raise InputError(f"{name} is {type(value).__name__}, expected {expected}")
    return value


def _question(fields: dict[str, Any], folder: Path, prompt: str | None) -> dict[str, Any]:
    """The fields of a Row, which fit together."""
    if {"image", "images"} <= fields.keys():
        raise InputError("expected image or images, got both")
    images = [fields.pop("image")] if "image" in fields else fields.pop("images", [])
    if not all(isinstance(image, str) for image in images):
        raise InputError("images is expected to be a list of paths")
    if ("video" in fields) == bool(images):
        raise InputError("expected one of image, images and video, and not an empty list")
    if "video" in fields:
        fields["video"] = str(folder / fields["video"])
    elif {"frames", "stride"} & fields.keys():
        raise InputError("frames and stride choose frames of a video: there is none")
    if fields.setdefault("prompt", prompt) is None:
        raise InputError('no prompt: give the row one, {"prompt": "caption en"}, or the batch with -p')
    return {**fields, "images": tuple(str(folder / image) for image in images)}


def folder_rows(folder: Path, prompt: str) -> Iterator[Row]:
    """One prompt about each image file of a folder; the id is the file's name."""
    for number, path in enumerate(list_pictures(folder), start=1):
        yield Row(number, path.name, prompt, images=(os.fspath(path),))
