"""Reads a safetensors file as read-only views of one memory map: nothing is copied, nothing is converted.

The format (safetensors README, "Format"): eight bytes, little-endian, with the header's length; the header, a
JSON object `{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`, padded with
spaces; then the tensors' bytes, with neither holes nor overlaps, counted from the end of the header.

The safetensors package cannot give NumPy a bfloat16 tensor, and it copies every tensor into memory. Here several
processes share the one copy in the page cache. The map lives as long as any array that looks into it, and closes
itself with the last one. A file whose header was not padded gives views whose `flags.aligned` is false; they are
valid. A header is never trusted: a hostile file ends in a CheckpointError, before anything large is allocated.
What no reader of a map can survive is a file that shrinks while it is in use.

Shards of one checkpoint are put together in shards.py.
"""

import json
import math
import mmap
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from pg2ref.arrays import Array
from pg2ref.errors import CheckpointError, brief

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit (safetensors README)
MAX_AXES = 32  # NumPy 2 allows 64
GIT_LFS_START = b"version https://git-lfs"

# U16 is absent on purpose: `uint16` means bfloat16 bit patterns in this project (arrays.py), so an array of
# plain 16-bit integers would be taken for weights. Floats of 8 bits and fewer: nothing here computes with them.
DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "BOOL": np.dtype("?"),
}
STORED_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorFile(NamedTuple):
    """One safetensors file; `tensors` are read-only views of its memory map, in the order of their bytes."""

    path: Path
    tensors: dict[str, Array]
    stored_dtypes: dict[str, str]  # the file's own words: "BF16" is uint16 bit patterns in `tensors`
    metadata: dict[str, str]
    file_bytes: int


class _Entry(NamedTuple):
    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_json_object(text: bytes, where: str) -> dict[str, Any]:
    """Parse UTF-8 JSON that must be one object in which no key occurs twice.

    Args:
        text: the bytes as they lie in the file.
        where: what they are, for the message: a file name and a noun.

    Raises:
        CheckpointError: not UTF-8, not JSON, not an object, nested too deeply, or a key occurs twice.
    """
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_object_of_distinct_keys)
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply to be one; download the file again") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(f"{where} is not valid JSON ({error}); download the file again") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where} must be a JSON object, got {brief(parsed)}")
    return parsed


def _object_of_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    distinct: dict[str, Any] = {}
    for key, value in pairs:
        if key in distinct:
            raise ValueError(f"the key {brief(key)} occurs twice")
        distinct[key] = value
    return distinct


def _open_map(path: Path) -> mmap.mmap:
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "a broken link" if os.path.islink(path) else "nothing"
        raise CheckpointError(f"{path}: expected a safetensors file, found {found}")
    try:
        with open(path, "rb") as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            if file_bytes < LENGTH_BYTES:
                raise CheckpointError(
                    f"{path.name}: the file is truncated: {file_bytes} bytes, expected at least "
                    f"{LENGTH_BYTES}; download it again"
                )
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _header_end(file_name: str, mapped: mmap.mmap) -> int:
    header_bytes = int.from_bytes(mapped[:LENGTH_BYTES], "little")
    header_end = LENGTH_BYTES + header_bytes
    if mapped[: len(GIT_LFS_START)] == GIT_LFS_START:
        raise CheckpointError(f"{file_name}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file_name}: not a safetensors file: it claims a header of {header_bytes:,} bytes, "
            f"at most {MAX_HEADER_BYTES:,} are allowed"
        )
    if header_end > len(mapped):
        raise CheckpointError(
            f"{file_name}: the file is truncated: {len(mapped):,} bytes, its header alone ends at "
            f"{header_end:,}; download it again"
        )
    if mapped[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{" or not header_bytes:
        raise CheckpointError(f"{file_name}: not a safetensors file: its header does not start with {{")
    return header_end


def _metadata(file_name: str, stored: object) -> dict[str, str]:
    if not isinstance(stored, dict) or not all(isinstance(value, str) for value in stored.values()):
        raise CheckpointError(f"{file_name}: __metadata__ must map strings to strings, got {brief(stored)}")
    return stored


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    """Whether this is a list of integers that can count bytes or elements (JSON's true is no integer)."""
    return isinstance(values, list) and all(type(size) is int and 0 <= size <= sys.maxsize for size in values)


def _entry(file_name: str, name: str, fields: object) -> _Entry:
    """Check all that can be said about one tensor without its neighbours."""
    at = f"{file_name}: tensor {brief(name)}"
    if not name.isprintable():
        raise CheckpointError(f"{at}: the name holds characters that cannot be printed")
    if not isinstance(fields, dict) or not fields.keys() >= {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{at}: expected dtype, shape and data_offsets, got {brief(fields)}")
    stored_dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(stored_dtype, str) or stored_dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise CheckpointError(f"{at}: dtype {brief(stored_dtype)} cannot be used; convert it to one of {known}")
    if not _are_sizes(shape) or len(shape) > MAX_AXES:
        raise CheckpointError(f"{at}: shape must be at most {MAX_AXES} non-negative integers, got {brief(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{at}: data_offsets must be two integers 0 <= begin <= end, got {brief(offsets)}")
    item_bytes = DTYPES[stored_dtype].itemsize
    if math.prod(size or 1 for size in shape) * item_bytes > sys.maxsize:
        raise CheckpointError(f"{at}: no memory can hold the shape {brief(shape)}")
    begin, end = offsets
    tensor_bytes = math.prod(shape) * item_bytes
    if end - begin != tensor_bytes:
        raise CheckpointError(
            f"{at}: {stored_dtype} of shape {brief(shape)} takes {tensor_bytes:,} bytes, its data_offsets "
            f"span {end - begin:,}; the file was written wrongly"
        )
    return _Entry(name, stored_dtype, tuple(shape), begin, end)


def _check_layout(file_name: str, ordered: list[_Entry], header_end: int, file_bytes: int) -> None:
    """The tensors must follow each other without holes or overlaps, and end where the file ends."""
    position = 0
    for entry in ordered:
        if entry.begin != position:
            fault = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise CheckpointError(
                f"{file_name}: tensor {brief(entry.name)} {fault}: it begins at data byte {entry.begin:,}, "
                f"expected {position:,}; the file was written wrongly"
            )
        position = entry.end
    expected_bytes = header_end + position
    if expected_bytes > file_bytes:
        raise CheckpointError(
            f"{file_name}: the file is truncated: {file_bytes:,} of {expected_bytes:,} bytes; download it again"
        )
    if expected_bytes < file_bytes:
        raise CheckpointError(
            f"{file_name}: {file_bytes - expected_bytes:,} bytes follow the last tensor, expected none; "
            "download it again"
        )


def _view(file_name: str, data: Array, entry: _Entry) -> Array:
    tensor_bytes = data[entry.begin : entry.end]
    if entry.stored_dtype == "BOOL" and (tensor_bytes > 1).any():
        raise CheckpointError(f"{file_name}: tensor {brief(entry.name)}: BOOL bytes must be 0 or 1")
    tensor: Array = tensor_bytes.view(DTYPES[entry.stored_dtype]).reshape(entry.shape)
    return tensor


def read_tensors(path: Path) -> TensorFile:
    """Map one safetensors file: read-only views, zero-copy; BF16 comes as `uint16` bit patterns.

    Source: safetensors README, "Format", and the checks of its Rust reader (`SafeTensors::read_metadata`).

    Raises:
        CheckpointError: the file is missing, unreadable, truncated, or breaks the format in any way.
    """
    mapped = _open_map(path)
    header_end = _header_end(path.name, mapped)
    header = parse_json_object(mapped[LENGTH_BYTES:header_end], f"{path.name}: the header")
    metadata = _metadata(path.name, header.pop("__metadata__", {}))
    entries = [_entry(path.name, name, fields) for name, fields in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_layout(path.name, entries, header_end, len(mapped))
    data = np.frombuffer(mapped, np.uint8)[header_end:]
    return TensorFile(
        path=path,
        tensors={entry.name: _view(path.name, data, entry) for entry in entries},
        stored_dtypes={entry.name: entry.stored_dtype for entry in entries},
        metadata=metadata,
        file_bytes=len(mapped),
    )


def forget_pages(tensor: Array) -> None:
    """Let go of the pages of the map that a tensor lies in: they are read again when they are needed.

    Pages that have been read count as memory of the process until then, though the system may take them back.
    """
    owner: Any = tensor
    while isinstance(owner, np.ndarray):
        owner = owner.base
    mapped = owner.obj if isinstance(owner, memoryview) else owner
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
