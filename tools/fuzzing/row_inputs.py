"""Rows of a batch: some lines of JSON, right ones among wrong ones, beside a picture and a video to read."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from fuzzing.mutation import MOST_BYTES, Rng, hostile_json, json_bytes, mutate, mutate_json
from fuzzing.target import MB, Target
from pg2ref.batch.rows import MOST_LINE_BYTES, Row, count_rows, read_rows
from pg2ref.batch.run import error_line
from pg2ref.errors import InputError
from pg2ref.inputs.image import read_image

PICTURE, VIDEO = "a.png", "b.gif"
ROWS: tuple[dict[str, Any], ...] = (
    {"id": "kitchen-7", "image": PICTURE, "prompt": "detect cat"},
    {"id": 8, "images": [PICTURE, PICTURE], "prompt": "answer en both show a dog"},
    {"video": VIDEO, "frames": 2, "stride": 1, "prompt": "caption en", "max_new_tokens": 40},
    {"image": PICTURE},
    {"video": VIDEO, "id": None},
)
ENDS = (b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b" \n", b"\r", b"")


def random_line(rng: Rng) -> bytes:
    """A row, a changed one, or another value."""
    row = rng.choice(ROWS)
    how = rng.random()
    if how < 0.3:
        return json.dumps(row).encode()
    if how < 0.7:
        return json_bytes(mutate_json(row, rng), rng)
    if how < 0.95:
        content = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode()
        return mutate(content, rng, [content, json.dumps(ROWS[1]).encode()])
    return json_bytes(hostile_json(rng), rng)


def make_rows(rng: Rng) -> bytes:
    """Up to twelve lines, with a very long one now and then."""
    lines = [random_line(rng) + rng.choice(ENDS) for _ in range(rng.choice((1, 1, 2, 3, 12)))]
    if rng.random() < 0.003:
        longest = b'{"image": "' + b"x" * (MOST_LINE_BYTES + rng.choice((-13, -12, 0, 1, MOST_LINE_BYTES))) + b'"}\n'
        lines.insert(rng.randrange(len(lines) + 1), longest)
    return b"".join(lines) if len(lines) > 1 else lines[0][:MOST_BYTES]


@cache
def picture() -> bytes:
    """A PNG of one colour."""
    content = io.BytesIO()
    Image.new("RGB", (5, 4), "green").save(content, "PNG")
    return content.getvalue()


@cache
def video() -> bytes:
    """A GIF of three frames."""
    frames = [Image.new("P", (5, 4), colour) for colour in range(3)]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    return content.getvalue()


def read_batch(content: bytes, folder: Path) -> None:
    """Each filled line is a row in its order, a question that can be read or an error; refused where none is read."""
    (folder / PICTURE).write_bytes(picture())
    (folder / VIDEO).write_bytes(video())
    lines = io.BytesIO(content)
    count = count_rows(lines)
    rows = list(read_rows(lines, folder, "ocr"))
    assert [row.number for row in rows] == sorted({row.number for row in rows})
    assert len(rows) == count
    errors = [error for row in rows if (error := error_of(row))]
    if rows and len(errors) == len(rows):
        raise errors[0]


def error_of(row: Row) -> Exception | None:
    """Why the row cannot be answered, None where it can; the line that reports it must be one of text."""
    error: Exception | None = row.error
    if error is None:
        assert isinstance(row.prompt, str)
        assert bool(row.images) != (row.video is not None)
        try:
            assert all(read_image(source).mode == "RGB" for source in row.sources())
        except InputError as refused:
            error = refused
    if error is not None:
        line = error_line(row, error)
        assert line.isascii()
        assert json.loads(line)["id"] == row.id
        assert len(line) < MOST_BYTES + 1000
    return error


TARGETS = (Target("rows", make_rows, read_batch, 64 * MB),)
