"""What was recorded of a run, by pg2ref or by anybody else: stages by name, read one at a time when they are needed.

A record is a trace of ours (trace_file.py), any other safetensors file, an npz, or a folder of npy or safetensors
files; those of others go through a map of names (name_map.py).
"""

import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pg2ref.arrays import Array
from pg2ref.checkpoint.npz import Archive, map_content, open_archive, read_content, read_header
from pg2ref.checkpoint.safetensors_file import STORED_NAMES, TensorFile, read_tensors
from pg2ref.errors import CheckpointError, InputError, UsageError, brief, shown_name
from pg2ref.parity.name_map import NameMap
from pg2ref.parity.summary import SAMPLES, Summary
from pg2ref.parity.trace_file import FORMAT, IDS, NUMBERS, SAMPLED, TYPES

STEP = re.compile(r"step_(\d{1,9})/")


@dataclass(frozen=True)
class Stage:
    """A stage of a record. Where `summary` is not None there is nothing else, and `read` gives its samples."""

    shape: tuple[int, ...]
    type: str  # f64, f32, f16, bf16 or i64, of the stored numbers
    read: Callable[[], Array]
    summary: Summary | None = None
    floors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """Stages in the order of computation, as far as it is known, and what is known of the run."""

    name: str
    facts: Mapping[str, str]
    stages: Mapping[str, Stage]


def step_of(name: str) -> int:
    """The number of the decoding step that a stage is of, 0 for the prompt."""
    step = STEP.match(name)
    return int(step[1]) if step else 0


def json_fact(record: Record, name: str) -> Any:
    """A fact that is JSON; None where it is none, as in the metadata of others, or is not there."""
    try:
        return json.loads(record.facts[name])
    except (KeyError, ValueError, RecursionError):
        return None


def open_record(path: Path, name_map: NameMap | None = None) -> Record:
    """Open what lies at `path`. Names are taken as they are without a map; a trace of ours needs none.

    Raises:
        InputError: nothing is there, or it is none of those.
        UsageError: the map does not fit.
    """
    if path.is_dir():
        return rename(path, stored_in_folder(path), {}, name_map)
    if not path.is_file():
        raise InputError(
            f"{path}: expected a trace, an npz, a safetensors file or a folder of npy files, found nothing"
        )
    if zipfile.is_zipfile(path):
        return rename(path, stored_in_npz(path), {}, name_map)
    file = read_safetensors(path)
    if file.metadata.get("format") == FORMAT:
        if name_map is not None:
            raise UsageError(f"{path}: a trace has our names already: leave out the map")
        return trace_record(file)
    if file.metadata.get("format", "").startswith("pg2ref-trace/"):
        raise InputError(f"{path}: {shown_name(file.metadata['format'])}, this version reads {FORMAT}: record it again")
    return rename(path, file.tensors, file.metadata, name_map)


def read_safetensors(path: Path) -> TensorFile:
    """The file, where a broken one is a fault of the input and not of a checkpoint."""
    try:
        return read_tensors(path)
    except CheckpointError as error:
        told = str(error).replace("download it again", "record it again")  # as nobody downloads a trace
        raise InputError(f"{told} (as a record it may be a trace, an npz, a safetensors file or a folder)") from None


def trace_record(file: TensorFile) -> Record:
    """A trace of ours."""
    try:
        points = json.loads(file.metadata["points"])
        is_full = file.metadata["mode"] == "full"
        stages = {IDS: plain_stage(file.tensors[IDS])}
        for row, point in enumerate(points):
            floors = valid_floors(point.get("floor", {}))
            if not isinstance(point["name"], str):
                raise ValueError(f"a name, {brief(point['name'])}")
            if is_full:
                stages[point["name"]] = plain_stage(file.tensors[point["name"]], floors)
            else:
                stages[point["name"]] = stats_stage(file, row, point, floors)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{file.path}: says {FORMAT}, but lacks or garbles {shown_name(str(error))}: record it again"
        ) from None
    facts = {name: value for name, value in file.metadata.items() if name != "points"}
    return Record(str(file.path), facts, stages)


Stored = Mapping[str, Array]  # under the names in the files; nothing is read before it is needed, unless compressed


def stored_in_npz(path: Path) -> Stored:
    """An npz: its arrays mapped where they lie, as np.savez leaves them, or unpacked into memory."""
    try:
        with open_archive(path) as archive:
            return {name: _read_member(archive, name) for name in archive.members}
    except CheckpointError as error:
        raise InputError(f"{error} (as a record it is best written by np.savez, of plain arrays)") from None


def _read_member(archive: Archive, name: str) -> Array:
    header = read_header(archive, name)
    try:
        dtype = np.dtype(header.descr)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.hasobject:
        raise InputError(f"{archive.name}: {brief(name)}: expected numbers, got {brief(header.descr)}: leave it out")
    mapped = map_content(archive, name, header, dtype)
    return read_content(archive, name, header, dtype) if mapped is None else mapped


def stored_in_folder(folder: Path) -> Stored:
    """A folder: each npy is an array of the file's name, each safetensors holds some.

    Where a file holds one tensor named `data`, as Transformers' model_addition_debugger_context writes them, it has
    the file's name too. Folders inside are part of the name.
    """
    stored: dict[str, Array] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if path.suffix == ".npy":
            stored[name] = read_npy(path)
        elif path.suffix == ".safetensors":
            tensors = read_safetensors(path).tensors
            stored |= {name: tensors["data"]} if list(tensors) == ["data"] else tensors
    if not stored:
        raise InputError(f"{folder}: expected npy or safetensors files in the folder, found none")
    return stored


def read_npy(path: Path) -> Array:
    """One array, mapped."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected an npy file of numbers, it cannot be read ({error})") from None


def rename(path: Path | str, stored: Stored, facts: Mapping[str, str], name_map: NameMap | None) -> Record:
    """A record of another's arrays under our names."""
    stages: dict[str, Stage] = {}
    for name, array in stored.items():
        for stage, one in [(name, array)] if name_map is None else name_map.apply(name, array):
            if stage in stages:
                raise InputError(
                    f"{path}: {brief(name)} is a second {shown_name(stage)}: leave one of them out, or change the map"
                )
            stages[stage] = plain_stage(one, name=name)
    return Record(str(path), facts, stages)


def plain_stage(array: Array, floors: Mapping[str, float] = {}, name: str = "") -> Stage:
    """A stage that is there whole."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bf16 as JAX's arrays come out of NumPy's files
        array = array.view(np.uint16)
    stored = STORED_NAMES.get(array.dtype.newbyteorder("<"), "")
    kind = TYPES.get(stored) or ("i64" if array.dtype.kind in "iu" else str(array.dtype))

    def read() -> Array:
        if not stored or array.dtype.kind not in "fiu":
            raise InputError(f"{brief(name)}: expected floats, got {array.dtype}: convert it to float32")
        return array

    return Stage(array.shape, kind, read, None, floors)


def stats_stage(file: TensorFile, row: int, point: Mapping[str, Any], floors: Mapping[str, float]) -> Stage:
    """A stage of which there is a summary.

    Raises:
        ValueError: it is that of no array, and nothing could be told from it.
    """
    name, shape, kind = point["name"], tuple(point["shape"]), point["type"]
    if kind not in TYPES.values() or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"shape and type of {name}")
    size = math.prod(shape)
    samples = file.tensors[SAMPLED][row, : min(size, SAMPLES)]  # rows of smaller stages are filled up
    numbers = file.tensors[NUMBERS][row].tolist()
    minimum, maximum, mean, std, norm, nans, infinities = numbers
    in_order = minimum <= maximum and std >= 0 and norm >= 0
    are_counts = all(one.is_integer() and 0 <= one <= size < 2**63 for one in (nans, infinities))
    if not (all(map(math.isfinite, numbers)) and in_order and are_counts):
        raise ValueError(f"the statistics of {name}")
    summary = Summary(minimum, maximum, mean, std, norm, int(nans), int(infinities), samples)
    return Stage(shape, kind, lambda: samples, summary, floors)


def valid_floors(floors: Any) -> Mapping[str, float]:
    """The noise floors of a stage as they stand in a file. One without end would allow any error."""
    if not isinstance(floors, dict) or not all(
        type(one) in (int, float) and 0 <= one < math.inf for one in floors.values()
    ):
        raise ValueError(f"a noise floor, {brief(floors)}")
    return floors
