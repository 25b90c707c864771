"""A checkpoint folder in the making: it bears its name when it is whole, and nothing is left of it otherwise."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pg2ref.checkpoint.shards import INDEX_NAME
from pg2ref.errors import Pg2RefError, UsageError

COPIED = ("*.json", "*.model", "*.jinja", "LICENSE*", "NOTICE*")  # of the source, the index of its weights apart
MAX_SHARD_BYTES = 5 * 10**9  # as Transformers writes them


def check_new(out: Path) -> None:
    """Raises UsageError where no folder of that name can be made."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: exists, expected a new folder or an empty one; give another name or remove it")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}; make it first")


@contextmanager
def new_folder(out: Path, source: Path, needed_bytes: int) -> Iterator[Path]:
    """Gives a folder beside `out`, with all of `source` that is no weights; at the end it becomes `out`.

    Raises:
        UsageError: `out` holds something, or has no folder to lie in.
        Pg2RefError: there is no room for so many bytes, or the file system refuses.
    """
    out = out.resolve()  # `.` has no name to put beside it
    check_new(out)
    try:
        check_room(out.parent, needed_bytes)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as private:
            unfinished = Path(private) / out.name  # the private folder's rights are not those of a new one
            unfinished.mkdir()
            copy_small_files(source, unfinished)
            yield unfinished
            if out.is_dir():
                out.rmdir()  # empty; not every system renames onto one
            unfinished.rename(out)
    except OSError as error:
        raise Pg2RefError(f"{out}: cannot be written ({error.strerror}); nothing is left of it") from error


def check_room(folder: Path, needed: int) -> None:
    """Raises Pg2RefError where the disk cannot take so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Pg2RefError(
            f"{folder}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; make room, or use another disk"
        )


def copy_small_files(source: Path, out: Path) -> None:
    """Config, tokenizer, preprocessor: all that is no weights."""
    for pattern in COPIED:
        for path in sorted(source.glob(pattern)):
            if path.name != INDEX_NAME and path.is_file():
                shutil.copyfile(path, out / path.name)
