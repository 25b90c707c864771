"""Watches how much of a zip member is unpacked at a time."""

import zipfile

import pytest


def watch_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the length of every piece unpacked from now on."""
    lengths: list[int] = []
    original = zipfile.ZipExtFile.read

    def read(self: zipfile.ZipExtFile, count: int | None = -1) -> bytes:
        content = original(self, count)
        lengths.append(len(content))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    return lengths
