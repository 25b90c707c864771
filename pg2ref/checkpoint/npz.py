"""Reads .npz archives, zip files of .npy files, neither of which is trusted.

Nothing is unpickled, no member is unpacked further than its shape allows, and a member that is stored without
compression can be looked into where it lies, as a view of one memory map of the archive.
"""

import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.checkpoint.npy_header import read_npy_header
from pg2ref.errors import CheckpointError, shown_name

MOST_MEMBERS = 1 << 14
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # that NumPy writes
LOCAL_HEADER_BYTES = 30  # of a zip member, before its name; the lengths of name and extra field stand at 26 and 28
LARGE = 1 << 24  # bytes, from which on a member must not be suspiciously well compressed
MOST_COMPRESSED = 20  # times: weights give 1.1 to 2


class Archive(NamedTuple):
    """An open archive; `members` by their names without .npy."""

    name: str
    file: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    mapped: mmap.mmap


class Header(NamedTuple):
    """What a member says of itself before its numbers."""

    shape: tuple[int, ...]
    fortran_order: bool
    descr: str  # NumPy's word for the type, unchecked
    header_bytes: int


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive for reading. Views of its map outlive it.

    Raises:
        CheckpointError: now or while it is read: no zip file, or a damaged one.
    """
    try:
        with open(path, "rb") as stream, zipfile.ZipFile(stream) as file:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            yield Archive(path.name, file, _members(path.name, file), mapped)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        got = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{path.name}: expected a whole .npz file, got {got}; download it again") from error


def _members(name: str, file: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = file.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(infos) > MOST_MEMBERS or len(members) != len(infos):
        raise CheckpointError(
            f"{name}: expected at most {MOST_MEMBERS} members, each once, got {len(infos)}, {len(members)} different"
        )
    for info in infos:
        if info.compress_type not in PACKINGS:
            raise CheckpointError(
                f"{name}: {shown_name(info.filename)}: expected a member stored or deflated, as NumPy writes them, got "
                f"method {info.compress_type} of zip; save it anew"
            )
    return members


def read_header(archive: Archive, name: str) -> Header:
    """Shape and type of a member that is there.

    Raises:
        CheckpointError: it is of another version of .npy, or no plain array.
    """
    with archive.file.open(archive.members[name]) as stream:
        descr, fortran_order, shape = read_npy_header(stream, f"{archive.name}: {shown_name(name)}")
        return Header(shape, fortran_order, descr, stream.tell())


def read_content(archive: Archive, name: str, header: Header, dtype: np.dtype[Any]) -> Array:
    """A member's numbers, of a type that the caller has checked, in memory of their own.

    Raises:
        CheckpointError: there are more or fewer than its shape says, or it is packed like no weights are.
    """
    info = archive.members[name]
    nbytes = _check_size(archive, name, header, dtype, info.file_size - header.header_bytes)
    if info.file_size > max(LARGE, MOST_COMPRESSED * info.compress_size):
        raise CheckpointError(
            f"{archive.name}: {name}: {info.file_size:,} bytes are packed in {info.compress_size:,}, expected at least "
            f"a {MOST_COMPRESSED}th; weights are not packed so tightly"
        )
    with archive.file.open(info) as stream:
        stream.read(header.header_bytes)
        content = stream.read(nbytes + 1)
    return _shaped(archive, name, header, dtype, np.frombuffer(content, np.uint8))


def map_content(archive: Archive, name: str, header: Header, dtype: np.dtype[Any]) -> Array | None:
    """A member's numbers where they lie in the file, read-only; None where they are compressed.

    The checksum is not looked at, which would read all of it.
    """
    info = archive.members[name]
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    lengths = struct.unpack_from("<HH", archive.mapped, info.header_offset + LOCAL_HEADER_BYTES - 4)
    begin = info.header_offset + LOCAL_HEADER_BYTES + sum(lengths)
    stored = np.frombuffer(archive.mapped, np.uint8)[begin : begin + info.file_size]
    return _shaped(archive, name, header, dtype, stored[header.header_bytes :])


def _shaped(archive: Archive, name: str, header: Header, dtype: np.dtype[Any], content: Array) -> Array:
    _check_size(archive, name, header, dtype, content.nbytes)
    return content.view(dtype).reshape(header.shape, order="F" if header.fortran_order else "C")


def _check_size(archive: Archive, name: str, header: Header, dtype: np.dtype[Any], nbytes: int) -> int:
    expected = math.prod(header.shape) * dtype.itemsize
    if nbytes != expected:
        got = "more" if nbytes > expected else "fewer"
        raise CheckpointError(f"{archive.name}: {name}: expected {expected:,} bytes, got {got}")
    return expected
