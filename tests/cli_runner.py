"""Runs the command line inside the test's process, and in a process of its own where that is the point."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from pg2ref.cli.main import main

PG2REF = [sys.executable, "-c", "from pg2ref.cli.main import main; main()"]


class Stdin(io.BytesIO):
    """Bytes that are called as the real stdin is."""

    name = "<stdin>"


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def make_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs one command line in this process; `stdin` is bytes."""

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Stdin(stdin), "utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, *capsys.readouterr())

    return run


def run_process(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
    """The same in a process of its own."""
    return subprocess.run([*PG2REF, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)


def write_picture(path: Path, size: tuple[int, int] = (60, 40), shift: int = 0) -> Path:
    """A small colourful picture, the same for the same arguments."""
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 4 + shift, y * 6, x * y + 3 * shift], -1) % 256
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path
