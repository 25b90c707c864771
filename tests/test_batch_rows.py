"""Rows out of JSON lines: what is read, and that nothing a line can hold does more than fail in its place."""

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pg2ref.batch import rows as batch_rows
from pg2ref.batch.rows import MOST_LINE_BYTES, Row, count_rows, folder_rows, read_rows
from pg2ref.errors import InputError

FOLDER = Path("data")


def read(content: bytes, prompt: str | None = "ocr") -> list[Row]:
    return list(read_rows(io.BytesIO(content), FOLDER, prompt))


def test_fields() -> None:
    lines = [
        {"id": "kitchen-7", "image": "kitchen/7.jpg", "prompt": "detect cat"},
        {"id": 8, "images": ["left.png", "/abs/right.png"]},
        {"video": "clip.mp4", "frames": 4, "stride": 30, "max_new_tokens": 40, "id": None},
        {"video": "clip.mp4"},
    ]
    assert read("\n".join(map(json.dumps, lines)).encode()) == [
        Row(1, "kitchen-7", "detect cat", ("data/kitchen/7.jpg",)),
        Row(2, 8, "ocr", ("data/left.png", "/abs/right.png")),
        Row(3, 3, "ocr", video="data/clip.mp4", frames=4, stride=30, max_new_tokens=40),
        Row(4, 4, "ocr", video="data/clip.mp4", frames=16),
    ]


@pytest.mark.parametrize("path", ["README.md", "pg2ref/batch/rows.py", "pg2ref/cli/batch.py"])
def test_documented_rows_are_rows(path: str) -> None:
    text = (Path(__file__).parent.parent / path).read_text(encoding="utf-8")
    lines = re.findall(r'^ *(\{"(?:id|video)": .*\})$', text, flags=re.MULTILINE)
    assert len(lines) == 3
    assert [row.error for row in read("\n".join(lines).encode())] == [None] * 3


def test_empty_lines_are_counted_and_passed_over() -> None:
    assert [row.number for row in read(b'\n{"image": "a"}\r\n  \n{"image": "b"}')] == [2, 4]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "expected a JSON object (Expecting property name"),
        (b"\xff\xfe{", "expected a JSON object ("),
        (b"[" * 100_000, "expected a JSON object (maximum recursion depth"),
        (b'{"id": ' + b"9" * 5000 + b"}", "expected a JSON object (Exceeds the limit"),
        (b"[1]", "expected a JSON object, got list"),
        (b"null", "expected a JSON object, got NoneType"),
        (b"{}", "expected one of image, images and video"),
        (b'{"images": []}', "expected one of image, images and video"),
        (b'{"image": "a", "video": "b"}', "expected one of image, images and video"),
        (b'{"image": "a", "images": ["b"]}', "image or images, got both"),
        (b'{"images": ["a", 3]}', "list of paths"),
        (b'{"image": 3}', "image is int, expected str"),
        (b'{"image": "a", "id": 1.5}', "id is float, expected str or int"),
        (b'{"image": "a", "max_new_tokens": true}', "max_new_tokens is bool, expected int"),
        (b'{"image": "a", "promt": "ocr"}', "unknown field 'promt', expected id, image, images, video"),
        (b'{"image": "a", "stride": 2}', "frames of a video: there is none"),
    ],
)
def test_a_bad_line_is_a_row_with_its_error(line: bytes, says: str) -> None:
    before, bad, after = read(b'{"image": "a"}\n' + line + b'\n{"image": "b"}\n')
    assert (before.error, after.error, after.number) == (None, None, 3)
    assert isinstance(bad.error, InputError)
    assert str(bad.error).startswith("line 2: ")
    assert says in str(bad.error)


def test_a_bad_row_keeps_its_id() -> None:
    (row,) = read(b'{"id": "seven"}')
    assert (row.id, row.error is None) == ("seven", False)
    (row,) = read(b'{"promt": "ocr", "id": "eight"}')
    assert (row.id, "unknown field" in str(row.error)) == ("eight", True)


def test_a_prompt_is_needed() -> None:
    (row,) = read(b'{"image": "a"}', prompt=None)
    assert "no prompt" in str(row.error)
    assert read(b'{"image": "a", "prompt": ""}', prompt=None)[0].error is None


def test_a_long_line_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(io.BytesIO):
        most = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            self.most = max(self.most, len(line))
            return line

    content = Watched(b'{"image": "a"}\n{"image": "' + b"x" * (3 * MOST_LINE_BYTES) + b'"}\n{"image": "b"}\n')
    first, long, last = read_rows(content, FOLDER, "ocr")
    assert (first.number, long.number, last.number) == (1, 2, 3)
    assert "longer than 1,048,576 bytes" in str(long.error)
    assert last.images == ("data/b",)
    assert content.most <= MOST_LINE_BYTES + 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_rows_and_are_counted(content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_rows, "MOST_LINE_BYTES", 20)
        rows, stream = read(content), io.BytesIO(content)
        assert count_rows(stream) == len(rows)
        assert stream.tell() == 0
        assert [row.number for row in rows] == sorted({row.number for row in rows})


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*batch_rows.FIELDS, "other"]), JSON, max_size=5))
def test_any_object_is_a_row_or_its_error(fields: dict[str, object]) -> None:
    (row,) = read(json.dumps(fields).encode())
    assert (row.error is None) == (bool(row.images) != (row.video is not None))
    assert isinstance(row.id, str | int)


def test_a_folder_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for name in ("b10.png", "b9.JPG", "a.webp", "b9.txt", "B1.png"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    found = list(folder_rows(tmp_path, "ocr"))
    assert [row.id for row in found] == ["B1.png", "a.webp", "b9.JPG", "b10.png"]
    assert [row.number for row in found] == [1, 2, 3, 4]
    assert found[0] == Row(1, "B1.png", "ocr", (str(tmp_path / "B1.png"),))
