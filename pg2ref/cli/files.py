"""Files that commands write: whole or not at all, and refused before the work begins."""

import os
import sys
from contextlib import suppress

from pg2ref.errors import Pg2RefError, UsageError


def check_writable(path: str | None) -> None:
    """Raises UsageError now, not after minutes of computing, where a file cannot be written; None and `-` pass."""
    if path is None or path == "-":
        return
    folder = os.path.dirname(os.path.realpath(path))
    if not path or os.path.isdir(path):
        raise UsageError(f"{path!r}: expected the name of a file to write, got a folder")
    if not os.path.isdir(folder):
        raise UsageError(f"{path}: expected a file in an existing folder, there is no {folder}: make it first")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"{path}: may not be written: choose another place")


def write_bytes(path: str, content: bytes) -> None:
    """Write under another name, then rename, so that nobody ever sees half a file; `-` is stdout.

    A link keeps pointing to the file behind it; what is no plain file, a device say, is written into.

    Raises Pg2RefError where the file system refuses.
    """
    if path == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    target = os.path.realpath(path)
    is_plain = os.path.isfile(target) or not os.path.exists(target)
    written = f"{target}.{os.getpid()}.part" if is_plain else target
    try:
        with open(written, "wb") as file:
            file.write(content)
        if is_plain:
            os.replace(written, target)
    except OSError as error:
        if is_plain:
            with suppress(OSError):
                os.unlink(written)
        raise Pg2RefError(f"{path}: cannot be written ({error.strerror}): choose another place") from error
