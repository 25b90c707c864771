"""A file written beside the computation: its bytes are those appended, whatever the disk can do, however slowly."""

import fcntl
import os
import time
from errno import EINVAL, ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pg2ref.arrays import Array
from pg2ref.parity import streamed_file
from pg2ref.parity.streamed_file import PAST_CACHE, StreamedFile

START = b"start".ljust(streamed_file.PAGE)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_file, "BLOCK", 2 * streamed_file.PAGE)


class SlowFile:
    """A file on a slow disk."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, block: memoryview) -> int:
        time.sleep(0.02)
        return int(self.file.write(block))


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    open_quick = streamed_file.open_past_cache

    def open_slow(path: Path) -> tuple[Any, bool]:
        file, is_past_cache = open_quick(path)
        return SlowFile(file), is_past_cache

    monkeypatch.setattr(streamed_file, "open_past_cache", open_slow)


def arrays(rng: np.random.Generator) -> list[Array]:
    """Smaller and larger than a block, of an odd number of bytes, without numbers, not row-major, one number."""
    shapes = [(3, 5), (1000, 7), (0, 4), (40, 30, 20), (1,), ()]
    found: list[Array] = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return [*found, rng.integers(0, 9, 20001, np.uint8), rng.standard_normal((90, 70)).T, np.arange(7)]


def write(path: Path, appended: list[Array]) -> bool:
    """Whether the page cache was passed by to the end."""
    file = StreamedFile(path, len(START))
    try:
        for array in appended:
            file.append(array)
        file.flush()
        passed = is_past_cache(file)
        file.finish(START)
    finally:
        file.close()
    return passed


def is_past_cache(file: StreamedFile) -> bool:
    return bool(fcntl.fcntl(file._file, fcntl.F_GETFL) & PAST_CACHE)


def can_pass_cache(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_CREAT | os.O_WRONLY | PAST_CACHE))
    except OSError:
        return False
    return PAST_CACHE != 0


def expected(appended: list[Array]) -> bytes:
    return START + b"".join(array.tobytes() for array in appended)


def test_bytes_are_those_appended(tmp_path: Path, rng: np.random.Generator) -> None:
    appended = arrays(rng)
    assert write(tmp_path / "f", appended) == can_pass_cache(tmp_path)
    assert (tmp_path / "f").read_bytes() == expected(appended)


def test_an_array_may_change_as_soon_as_it_was_appended(tmp_path: Path) -> None:
    array, file = np.zeros(9 * streamed_file.BLOCK, np.uint8), StreamedFile(tmp_path / "f", 0)
    for number in range(5):
        array[:] = number
        file.append(array)
    file.finish(b"")
    file.close()
    np.testing.assert_array_equal(
        np.fromfile(tmp_path / "f", np.uint8), np.repeat(np.arange(5, dtype=np.uint8), array.size)
    )


@pytest.mark.usefixtures("slow_disk")
def test_what_was_flushed_can_be_read_and_more_appended(tmp_path: Path, rng: np.random.Generator) -> None:
    appended, file = arrays(rng), StreamedFile(tmp_path / "f", len(START))
    for count, array in enumerate(appended, 1):
        file.append(array)
        file.flush()
        wanted = expected(appended[:count])[len(START) :]
        assert (tmp_path / "f").read_bytes()[len(START) :][: len(wanted)] == wanted
    file.finish(START)
    file.close()
    assert (tmp_path / "f").read_bytes() == expected(appended)


def test_a_file_system_that_cannot_pass_its_cache_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    opened = os.open

    def refuse(name: str, flags: int, mode: int = 0o777) -> int:
        if flags & PAST_CACHE:
            raise OSError(EINVAL, "Invalid argument")
        return opened(name, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    appended = arrays(rng)
    assert not write(tmp_path / "f", appended)
    assert (tmp_path / "f").read_bytes() == expected(appended)


def test_a_disk_with_larger_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """What is no whole page to it, it refuses; here not even pages of a byte are rounded up."""
    monkeypatch.setattr(streamed_file, "PAGE", 1)
    appended = arrays(rng)
    assert not write(tmp_path / "f", appended)
    assert (tmp_path / "f").read_bytes() == expected(appended)


@pytest.mark.usefixtures("slow_disk")
def test_a_slow_disk_is_written_through_the_cache(tmp_path: Path) -> None:
    appended = [np.full(streamed_file.BLOCK, number, np.uint8) for number in range(40)]
    assert not write(tmp_path / "f", appended)
    assert (tmp_path / "f").read_bytes() == expected(appended)


def test_an_error_comes_back_and_nobody_hangs() -> None:
    block = np.ones(streamed_file.BLOCK, np.uint8)
    for late in (
        lambda file: [file.append(block) for _ in range(1000)],
        StreamedFile.flush,
        lambda file: file.finish(b""),
    ):
        file = StreamedFile(Path("/dev/full"), 0)
        try:
            file._full.put((0, block))
            with pytest.raises(OSError, match="No space left") as caught:
                late(file)
            assert caught.value.errno == ENOSPC
        finally:
            file.close()
