"""A trace on disk, format `pg2ref-trace/1`: one safetensors file that any language reads without pg2ref.

Its metadata are strings. `format`; `mode`, full or stats; `points`, a JSON list of the stages in the order of
computation, {"name", "shape", "type", "step", "layer", "floor"}, where `floor` has for `f32` and `bf16` the error of
such arithmetic (noise_floor.py), if it was computed, and `layer` is null outside layers; and the facts of the run
(recording.py). The ids of the prompt are the tensor `input/ids`, I64.

Mode full: each stage is a tensor under its own name (trace.py has the names): row-major, no batch axis, tokens first,
of the type it was computed in. They lie in the file in the order of computation, so it is written as the model runs,
and may be larger than the memory. Mode stats: two tensors have a row for each point, `stats/numbers` F64 (minimum,
maximum, mean, standard deviation, norm, number of NaN, of infinities) and `stats/samples` F32 (summary.py says which
values; rows are filled up with zeros). As many samples are kept of each stage as a file of a megabyte has room for, 256
at most and 64 at least; the width of `stats/samples` says how many. Of every published size at least 190 fit
where no decoding steps are recorded, of 3b all 256; with more than one to four steps, by size, a file is larger.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.checkpoint.safetensors_file import LENGTH_BYTES, STORED_NAMES
from pg2ref.checkpoint.safetensors_writer import Planned, new_tensor_file
from pg2ref.errors import Pg2RefError, UsageError
from pg2ref.parity.streamed_file import PAGE, StreamedFile
from pg2ref.parity.summary import SAMPLES, Summary, shorten, summarize

FORMAT = "pg2ref-trace/1"
IDS = "input/ids"
NUMBERS, SAMPLED = "stats/numbers", "stats/samples"
BYTES_A_STAGE = 512  # of the header, at most: two entries of a name and a few numbers
LARGEST_STATS = 1_000_000  # bytes of a file of mode stats: what a repository takes without a thought
FEWEST_SAMPLES = 64  # of a stage, however many stages there are: an error is known to a tenth or so from these
BYTES_OF_STATS = 1024  # of a header for what does not grow with the stages: entries of three tensors, and filling
TYPES = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16"}
Floors = Mapping[str, float]  # precision -> error of a stage in it, as NRMSE


class Point(NamedTuple):
    """A recorded stage, without its numbers."""

    name: str
    shape: tuple[int, ...]
    type: str  # a value of TYPES

    def to_dict(self, floors: Floors) -> dict[str, Any]:
        """Its entry in the metadata."""
        step, layer = re.match(r"step_(\d+)/", self.name), re.search(r"layer_(\d+)/", self.name)
        described = {
            "name": self.name,
            "shape": list(self.shape),
            "type": self.type,
            "step": int(step[1]) if step else 0,
            "layer": int(layer[1]) if layer else None,
        }
        kept = {name: float(f"{floor:.4g}") for name, floor in floors.items() if math.isfinite(floor)}
        return described | ({"floor": kept} if kept else {})  # errors of zeros are infinite multiples: no yardstick


def describe_points(points: list[Point], floors: Mapping[str, Floors]) -> str:
    """The list of points in the metadata."""
    return json.dumps([point.to_dict(floors.get(point.name, {})) for point in points], separators=(",", ":"))


def file_behind(path: str | Path) -> Path:
    """Where a trace of that name is written: a link keeps pointing to the file behind it.

    Raises:
        UsageError: a folder, a device or a pipe has the name; a file that took its place would be the end of it.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise UsageError(f"{path}: expected the name of a file, got that of a folder, a device or a pipe")
    return target


class FullWriter:
    """A tap that writes each chosen stage to the file as it comes, and keeps none of them.

    Use it in `with`; the file appears under its name with `finish`, and not at all if that is never reached.
    An OSError says what the file system refuses, at that stage or a later one (streamed_file.py).
    """

    def __init__(self, path: Path, points: Callable[[str], bool], most_stages: int) -> None:
        self.path, self.wants = path, points
        self.recorded: list[Point] = []
        self._room = most_stages * BYTES_A_STAGE + (1 << 16)  # the rest is for the facts
        self._room += -(LENGTH_BYTES + self._room) % PAGE
        self._entries: dict[str, dict[str, Any]] = {}
        self._end = 0
        self._unfinished = path.with_name(f"{path.name}.{os.getpid()}-{id(self):x}.part")  # of this writer alone

    def __enter__(self) -> "FullWriter":
        self._file = StreamedFile(self._unfinished, LENGTH_BYTES + self._room)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def __call__(self, stage: str, array: Array) -> Array:
        """Write the stage, if it is one of the points."""
        if self.wants(stage):
            self._append(stage, array)
            self.recorded.append(Point(stage, array.shape, TYPES[STORED_NAMES[array.dtype]]))
        return array

    def read(self, stage: str) -> Array:
        """A stage that has been written, from the file."""
        entry = self._entries[stage]
        self._file.flush()
        begin, end = entry["data_offsets"]
        dtype = {name: dtype for dtype, name in STORED_NAMES.items()}[entry["dtype"]]
        offset = LENGTH_BYTES + self._room + begin
        flat = np.fromfile(self._unfinished, dtype, (end - begin) // dtype.itemsize, offset=offset)
        return flat.reshape(entry["shape"])

    def finish(self, facts: Mapping[str, str], input_ids: Array, floors: Mapping[str, Floors] = {}) -> None:
        """Add the ids of the prompt and all metadata, and give the file its name."""
        self._append(IDS, input_ids)
        points = describe_points(self.recorded, floors)
        metadata = {"format": FORMAT, "mode": "full", **facts, "points": points}
        header = json.dumps({"__metadata__": metadata, **self._entries}).encode()
        if len(header) > self._room:
            raise Pg2RefError(
                f"{self.path}: {len(self.recorded)} stages need {len(header):,} bytes of header, expected at most "
                f"{self._room:,}: record fewer points"
            )
        self._file.finish(self._room.to_bytes(LENGTH_BYTES, "little") + header.ljust(self._room))
        self._unfinished.replace(self.path)

    def _append(self, name: str, array: Array) -> None:
        if name in self._entries:
            raise Pg2RefError(f"{name} was recorded twice: expected each stage once in a run")
        end = self._end + array.nbytes
        self._entries[name] = {
            "dtype": STORED_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [self._end, end],
        }
        self._file.append(array)
        self._end = end


class StatsWriter:
    """A tap that keeps a summary of each chosen stage, and writes all of them in the end."""

    def __init__(self, path: Path, points: Callable[[str], bool]) -> None:
        self.path, self.wants = path, points
        self.recorded: list[Point] = []
        self.summaries: list[Summary] = []

    def __call__(self, stage: str, array: Array) -> Array:
        """Summarise the stage, if it is one of the points."""
        if self.wants(stage):
            self.recorded.append(Point(stage, array.shape, TYPES[STORED_NAMES[array.dtype]]))
            self.summaries.append(summarize(array))
        return array

    def finish(self, facts: Mapping[str, str], input_ids: Array, floors: Mapping[str, Floors] = {}) -> None:
        """Write the file."""
        metadata = {"format": FORMAT, "mode": "stats", **facts, "points": describe_points(self.recorded, floors)}
        numbers = np.array([summary[:-1] for summary in self.summaries], np.float64).reshape(-1, 7)
        taken = len(json.dumps(metadata)) + BYTES_OF_STATS + numbers.nbytes + input_ids.nbytes
        samples = np.zeros((len(self.summaries), samples_that_fit(len(self.summaries), taken)), np.float32)
        for row, point, summary in zip(samples, self.recorded, self.summaries, strict=True):
            kept = shorten(summary, math.prod(point.shape), len(row)).samples
            row[: len(kept)] = kept
        tensors: dict[str, Array] = {NUMBERS: numbers, SAMPLED: samples, IDS: input_ids}
        planned = {name: Planned(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        with new_tensor_file(self.path, planned, metadata) as write:
            for name, tensor in tensors.items():
                write(name, tensor)


def samples_that_fit(num_stages: int, other_bytes: int) -> int:
    """How many samples of each stage there is room for beside the other bytes of a file of summaries."""
    fitting = (LARGEST_STATS - other_bytes) // (max(num_stages, 1) * np.dtype(np.float32).itemsize)
    return max(FEWEST_SAMPLES, min(SAMPLES, fitting))
