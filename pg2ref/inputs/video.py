"""A video as the frames that the model reads: images like others, one after the other, in their order in time.

PaliGemma has no notion of time: frames are laid out as several images are (prompt.py), without marks between them.
The authors fine-tune on 16 frames at 224 px, which are 4,096 image tokens.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from pg2ref.errors import InputError, UsageError, shown_path
from pg2ref.inputs.image import Frame, Picture, file_digest, pillow_errors, read_image

DEFAULT_FRAMES = 16
MOST_FRAMES = 256
MOVING_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")  # of those that Pillow reads, what holds moving pictures
PICTURE_SUFFIXES = frozenset(".png .jpg .jpeg .gif .bmp .webp .tif .tiff .ppm .jp2 .avif .qoi .tga".split())


def read_frames(
    source: str | os.PathLike[str], *, frames: int = DEFAULT_FRAMES, stride: int | None = None
) -> list[Frame]:
    """Some frames of a video, in their order; all of it where it has no more.

    Args:
        source: a GIF, WebP, APNG or AVIF file; a folder of frames, by name, numbers in names by value; any other video
            file with the `video` extra, its first video stream, turned as its header says.
        frames: how many at most.
        stride: take the first frame and every `stride`th after it, as the authors do; without it, frames are spread
            over the whole, each from the middle of its part.

    Raises:
        UsageError: numbers out of range, or a format that needs the `video` extra.
        InputError: there is no video, or it is damaged.
    """
    if not 1 <= frames <= MOST_FRAMES:
        raise UsageError(f"frames is {frames}, expected 1 to {MOST_FRAMES}")
    if stride is not None and stride < 1:
        raise UsageError(f"stride is {stride}, expected 1 or more")
    name = shown_path(os.fsdecode(source))
    if os.path.isdir(source):
        found = list_pictures(Path(source))
        if not found:
            raise InputError(f"{name}: expected a folder of frames, found no image file in it")
        return [
            Frame(read_image(found[index]), os.fspath(found[index]), file_digest(found[index]), index)
            for index in chosen_frames(len(found), frames, stride)
        ]
    try:
        with open(source, "rb") as file:
            moving = _open_moving(file, name)
            read = partial(_decode_video, file) if moving is None else partial(_seek, moving)
            digest = file_digest(source)
            taken = [Frame(picture, os.fsdecode(source), digest, i) for i, picture in read(name, frames, stride)]
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: expected a video, got: {got}; check path and permissions") from error
    if not taken:
        raise InputError(f"{name}: expected a video, got one without frames: convert it")
    return taken


def chosen_frames(count: int, frames: int, stride: int | None) -> list[int]:
    """Which of `count` frames to take: see `read_frames`."""
    if stride is not None:
        return list(range(0, min(count, frames * stride), stride))
    return list(range(count)) if count <= frames else [(2 * i + 1) * count // (2 * frames) for i in range(frames)]


def list_pictures(folder: Path) -> list[Path]:
    """The image files in a folder, told by their suffix, in the order of their names, numbers in them by value.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()]
    except OSError as error:
        raise InputError(
            f"{shown_path(str(folder))}: expected a folder of images, got: {error.strerror}; check path and permissions"
        ) from error
    return sorted(found, key=lambda path: (_with_numbers(path.name), path.name))


def _with_numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _open_moving(file: BinaryIO, name: str) -> Picture | None:
    with pillow_errors(name), suppress(UnidentifiedImageError):
        Image.init()
        return Image.open(file, formats=[known for known in MOVING_FORMATS if known in Image.OPEN])
    return None


def _seek(moving: Picture, name: str, frames: int, stride: int | None) -> Iterator[tuple[int, Picture]]:
    with pillow_errors(name):
        count = getattr(moving, "n_frames", 1)
    for index in chosen_frames(count, frames, stride):
        with pillow_errors(name):
            moving.seek(index)
            moving.load()
        yield index, read_image(moving)


def _decode_video(file: BinaryIO, name: str, frames: int, stride: int | None) -> Iterator[tuple[int, Picture]]:
    try:
        import av
    except ImportError:
        raise UsageError(
            f"{name}: expected GIF, WebP, APNG, AVIF or a folder of frames; other videos need the `video` extra: "
            "pip install 'pg2ref[video]'"
        ) from None
    try:
        wanted = set(chosen_frames(sys.maxsize if stride else _count_frames(av, file), frames, stride))
        file.seek(0)
        with av.open(file) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    yield index, _upright(frame)
                    wanted.remove(index)
                if not wanted:
                    return
    except (av.FFmpegError, IndexError) as error:  # IndexError: no video stream
        raise InputError(f"{name}: expected a video, got none that can be decoded ({error}): convert it") from error


def _count_frames(av: Any, file: BinaryIO) -> int:
    """Packets of the first video stream: no decoding, and one packet is a frame in common codecs."""
    file.seek(0)
    with av.open(file) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def _upright(frame: Any) -> Picture:
    """A decoded frame as a picture, turned as the header says (in degrees, against the clock)."""
    return read_image(frame.to_image().rotate(frame.rotation, expand=True))
