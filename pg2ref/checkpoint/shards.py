"""Finds the weight files of a checkpoint folder and puts their tensors together.

The layout is the one that Transformers writes: `model.safetensors`, or several shards with
`model.safetensors.index.json`, `{"metadata": {...}, "weight_map": {tensor name: shard name}}`. Where a folder
holds both, the single file is read, as Transformers does (modeling_utils.py, `_get_resolved_checkpoint_files`).
A folder with exactly one other safetensors file, that is neither an adapter nor a shard, is accepted too.

How one file is read is in safetensors_file.py; how a name becomes a folder, in locate.py.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pg2ref.arrays import Array
from pg2ref.checkpoint.safetensors_file import MAX_HEADER_BYTES, parse_json_object, read_tensors
from pg2ref.errors import CheckpointError, brief, shown_name

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = MAX_HEADER_BYTES
SHARD_PATTERN = re.compile(r"-\d+-of-\d+\.safetensors$")
OTHER_FORMATS = (".bin", ".npz", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx")


class StoredTensors(NamedTuple):
    """All tensors of a checkpoint, as read-only views of its files."""

    tensors: dict[str, Array]
    metadata: dict[str, str]  # of all files; where two disagree, the first file's
    files: tuple[Path, ...]
    total_bytes: int  # the files' sizes, headers included


class _Choice(NamedTuple):
    files: tuple[Path, ...]
    weight_map: dict[str, str] | None  # None: a single file, which needs no index


def name_some(names: Iterable[str], limit: int = 20) -> str:
    """Names for a message: sorted, unprintable and long ones escaped and cut, and a count of those beyond `limit`."""
    shown = sorted(names)
    listed = ", ".join(map(shown_name, shown[:limit]))
    return listed + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


def folder_names(folder: Path) -> list[str]:
    """Sorted names of what a folder holds.

    Raises:
        CheckpointError: it cannot be listed.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: the folder cannot be listed ({error.strerror})") from error


def _read_weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX_NAME
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes are too many for an index")
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    weight_map = parse_json_object(text, INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_NAME}: weight_map must map tensor names to shards, got {brief(weight_map)}")
    for name, shard in weight_map.items():
        plain = isinstance(shard, str) and shard.isprintable() and not set(shard) & set("/\\")
        if not plain or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{INDEX_NAME}: the shard of {brief(name)} must be a plain name.safetensors, got {brief(shard)}"
            )
    return weight_map


def _choose_shards(folder: Path) -> _Choice:
    weight_map = _read_weight_map(folder)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not os.path.isfile(folder / shard)]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing: {name_some(missing)}; download them again"
        )
    return _Choice(tuple(folder / shard for shard in shards), weight_map)


def _choose_other(folder: Path) -> Path:
    """The one safetensors file under another name, or a message that says why there is none."""
    names = folder_names(folder)
    stored = [name for name in names if name.endswith(".safetensors")]
    adapters = [name for name in stored if name.startswith("adapter")]
    candidates = [name for name in stored if name not in adapters]
    shards = [name for name in candidates if SHARD_PATTERN.search(name)]
    other_formats = [name for name in names if name.endswith(OTHER_FORMATS)]
    if shards:
        raise CheckpointError(
            f"{folder}: {INDEX_NAME} is missing, which the shards {name_some(shards)} need; download it again"
        )
    if len(candidates) == 1:
        return folder / candidates[0]
    if candidates:
        raise CheckpointError(
            f"{folder}: expected {SINGLE_NAME}, found several safetensors files: {name_some(candidates)}; "
            "keep one of them in the folder"
        )
    if adapters:
        raise CheckpointError(
            f"{folder}: holds only an adapter ({name_some(adapters)}); give the base model as the model and "
            "this folder as the adapter"
        )
    if other_formats:
        raise CheckpointError(
            f"{folder}: the weights must be safetensors, found {name_some(other_formats)}; convert them to "
            f"{SINGLE_NAME}"
        )
    holds = f"it holds {name_some(names)}" if names else "it is empty"
    raise CheckpointError(f"{folder}: neither {SINGLE_NAME} nor {INDEX_NAME} is there; {holds}")


def _choose(folder: Path) -> _Choice:
    if os.path.isfile(folder / SINGLE_NAME):
        return _Choice((folder / SINGLE_NAME,), None)
    if os.path.lexists(folder / INDEX_NAME):
        return _choose_shards(folder)
    return _Choice((_choose_other(folder),), None)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a folder's weights, all of them present; reads the index but no weights.

    Raises:
        CheckpointError: there are none, one is missing, or the index is damaged.
    """
    return _choose(folder).files


def _check_against_index(weight_map: dict[str, str], places: dict[str, list[str]]) -> None:
    """Say at once all that the shards and their index differ in; `places` is tensor name -> shards."""
    absent = [f"{name} ({shard})" for name, shard in weight_map.items() if shard not in places.get(name, [])]
    twice = [f"{name} ({', '.join(shards)})" for name, shards in places.items() if len(shards) > 1]
    unlisted = [f"{name} ({shards[0]})" for name, shards in places.items() if name not in weight_map]
    faults = [
        f"{len(names)} {fault}: {name_some(names, limit=5)}"
        for fault, names in (
            ("not in the shard that the index names", absent),
            ("in two shards", twice),
            ("in no line of the index", unlisted),
        )
        if names
    ]
    if faults:
        raise CheckpointError(f"{INDEX_NAME} and its shards disagree about tensors: {'; '.join(faults)}")


def read_checkpoint_tensors(folder: Path) -> StoredTensors:
    """Map every weight file of a folder and merge their tensors; nothing is copied.

    Source: Transformers, modeling_utils.py, for which files count; the index is checked more strictly here:
    each tensor lies in exactly the shard that the index names, and no shard holds another one.

    Raises:
        CheckpointError: no weights are there, or files are missing, damaged or contradict each other.
    """
    files, weight_map = _choose(folder)
    shards = [read_tensors(path) for path in files]
    if weight_map is not None:
        places: dict[str, list[str]] = {}
        for shard in shards:
            for name in shard.tensors:
                places.setdefault(name, []).append(shard.path.name)
        _check_against_index(weight_map, places)
    metadata: dict[str, str] = {}
    for shard in reversed(shards):
        metadata |= shard.metadata
    return StoredTensors(
        tensors={name: tensor for shard in shards for name, tensor in shard.tensors.items()},
        metadata=metadata,
        files=files,
        total_bytes=sum(shard.file_bytes for shard in shards),
    )
