"""The file of results while it grows: whole lines under another name, taken up again where a run was stopped.

Lines go to `out.jsonl.part`, which becomes `out.jsonl` when the last row is in it. Each is handed to the system in one
piece before the next row is taken up, so a run that is killed leaves whole lines, and at most one cut one at the end,
which is dropped.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pg2ref.batch.rows import Row
from pg2ref.errors import Pg2RefError, UsageError

PART = ".part"


class ResultsFile:
    """Results of a batch on their way to `path`. One process at a time writes them."""

    def __init__(self, path: Path, *, resume: bool, model: Mapping[str, Any]) -> None:
        """`model`: what results say of the model, as far as the lines that are there must say the same."""
        self.path, self.part, self.model = path, path.with_name(path.name + PART), model
        self.failed = 0  # of the rows that are in it
        is_begun = self.part.exists() and self.part.stat().st_size > 0
        self.is_complete = resume and path.exists() and not is_begun
        if is_begun and not resume:
            raise UsageError(
                f"{self.part} is what a stopped run left: add --resume to go on, or delete it to begin anew"
            )
        with self._refusals():
            self._file = open(self.part, "ab+", buffering=0)  # noqa: SIM115 - until `close`
        if not _lock(self._file.fileno()):
            self._file.close()
            raise UsageError(f"{self.part} is being written by another process: wait for it, or choose another --out")

    def skip_done(self, rows: Iterator[Row]) -> int:
        """Take from `rows` those that have a whole line already, check that they are the same; how many there are.

        Raises:
            UsageError: the lines are of other rows.
        """
        count, length = self._check_lines(self.part, rows)
        self._file.truncate(length)
        return count

    def check_complete(self, rows: Iterator[Row]) -> None:
        """Where `is_complete`: see that the results are those of all these rows.

        Raises:
            UsageError: they are of others, or there are more rows.
        """
        count, _ = self._check_lines(self.path, rows)
        if next(rows, None) is not None:
            raise UsageError(
                f"{self.path}: expected the results of all rows, got those of the first {count}: choose another --out"
            )

    def _check_lines(self, path: Path, rows: Iterator[Row]) -> tuple[int, int]:
        """How many whole lines there are, and their bytes."""
        count, length = 0, 0
        with open(path, "rb") as file:
            for line in file:
                if line.endswith(b"\n"):  # else it was cut
                    count, length = count + 1, length + len(line)
                    self._check(path, line, next(rows, None), count)
        return count, length

    def _check(self, path: Path, line: bytes, row: Row | None, number: int) -> None:
        try:
            done = json.loads(line)
            is_error = "input" not in done
            is_same = row is not None and (done["id"], done["row"]) == (row.id, row.number)
            is_same = is_same and (is_error or (_is_of(done, row) and self._is_of_model(done)))  # type: ignore[arg-type]
        except (ValueError, LookupError, TypeError):
            is_same = is_error = False
        if not is_same:
            asked = "no more rows" if row is None else f"row {row.number}, id {row.id!r}"
            raise UsageError(
                f"{path}, line {number}: expected the result of {asked}, got another: go on with the same input, "
                "prompt, shard, model and adapters, or delete the file to begin anew"
            )
        self.failed += is_error

    def _is_of_model(self, done: Mapping[str, Any]) -> bool:
        return all(done["model"][key] == value for key, value in self.model.items())

    def append(self, line: str) -> None:
        """One more result."""
        left = (line + "\n").encode()
        with self._refusals():
            while left:
                left = left[self._file.write(left) :]

    def finish(self) -> None:
        """All rows are in it: give it its name."""
        with self._refusals():
            os.fsync(self._file.fileno())
            os.replace(self.part, self.path)

    def close(self) -> None:
        """Let go of it; a part that holds nothing is taken away."""
        with suppress(FileNotFoundError):
            if self.part.stat().st_size == 0:
                self.part.unlink()
        self._file.close()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What the file system refuses, as our error."""
        try:
            yield
        except OSError as error:
            raise Pg2RefError(
                f"{self.part}: cannot be written ({error.strerror}): make room or choose another place; "
                "--resume goes on with the lines that are in it"
            ) from error


def _is_of(done: Mapping[str, Any], row: Row) -> bool:
    """Whether a result is of this prompt and these files, by whatever path; frames may lie in the video, a folder."""
    paths = [os.path.abspath(image["path"]) for image in done["input"]["images"]]
    if row.video is not None:
        video = os.path.abspath(row.video)
        is_asked = all(path == video or path.startswith(video + os.sep) for path in paths)
    else:
        is_asked = paths == [os.path.abspath(image) for image in row.images]
    return bool(done["input"]["prompt"] == row.prompt and is_asked)


def _lock(descriptor: int) -> bool:
    """Whether the file is ours alone now; systems without such locks are trusted."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
