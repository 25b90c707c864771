"""Runs a program and looks at its memory meanwhile (Linux); a program that fails says why.

Mapped pages of the weights are shared with other processes and given back when the system needs them; anonymous memory
is the process's alone.
"""

import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click

SECONDS_BETWEEN_LOOKS = 0.005
FIELDS = {"RssAnon": "anonymous", "RssFile": "mapped", "VmRSS": "resident"}


@dataclass
class Peaks:
    """Largest values seen, in bytes; each at its own moment."""

    anonymous: int = 0
    mapped: int = 0
    resident: int = 0

    def look(self, pid: int) -> None:
        """Look once."""
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in FIELDS:  # a process that has ended has none
                size = int(value.split()[0]) << 10
                setattr(self, FIELDS[name], max(size, getattr(self, FIELDS[name])))


class Finished(NamedTuple):
    """What a program printed, and what it took."""

    stdout: str
    seconds: float
    peaks: Peaks


class ProgramFailed(click.ClickException):
    """A program's own words, and its exit code."""

    def __init__(self, command: Sequence[str], code: int, stderr: str) -> None:
        super().__init__(f"{' '.join(command)} ended with {code}:\n{stderr.strip() or '(it said nothing)'}")
        self.exit_code = code if code > 0 else 1  # a signal's is negative


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, *, watch: bool = True) -> Finished:
    """Run a program to its end.

    Args:
        command: the program and its arguments.
        environment: None for that of this process.
        watch: look at its memory every few milliseconds.

    Raises:
        ProgramFailed: it ended with another code than 0.
    """
    peaks, started = Peaks(), time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        while watch and process.poll() is None:
            peaks.look(process.pid)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        code = process.wait()
        seconds = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        if code:
            raise ProgramFailed(command, code, err.read())
        return Finished(out.read(), seconds, peaks)
