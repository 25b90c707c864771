"""Writes safetensors files whose tensors never lie in memory whole, and the index that names their shards.

Types and shapes of a file's tensors are known before their numbers: the header is written first, and each piece of a
tensor goes straight to its place. The format is described in safetensors_file.py, the layout of a folder in shards.py.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.checkpoint.safetensors_file import LENGTH_BYTES, STORED_NAMES
from pg2ref.checkpoint.shards import INDEX_NAME, SINGLE_NAME

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
METADATA = {"format": "pt"}  # Transformers refuses files without it


class Planned(NamedTuple):
    """What is known of a tensor before it is written; the type uint16 is BF16, as everywhere."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def lay_out(planned: Mapping[str, Planned], metadata: Mapping[str, str] = METADATA) -> tuple[bytes, dict[str, int]]:
    """The start of a file, length and header, and where in the file each tensor begins.

    Tensors of whole cache lines come first, so that all of them begin at one.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for name in sorted(planned, key=lambda name: planned[name].nbytes % ALIGNMENT != 0):
        dtype, shape = planned[name]
        offsets = [position, position + planned[name].nbytes]
        header[name] = {"dtype": STORED_NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    begins = {name: LENGTH_BYTES + len(text) + header[name]["data_offsets"][0] for name in planned}
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, begins


@contextmanager
def new_tensor_file(
    path: Path, planned: Mapping[str, Planned], metadata: Mapping[str, str] = METADATA
) -> Iterator[Callable[[str, Array], None]]:
    """A safetensors file in the making: gives a function that writes the next numbers of a tensor.

    Parts of different tensors may come in any order; in the end each must have come whole. The file bears a name that
    no reader looks for until then, so one that is there is whole. An OSError says what the file system refuses.
    """
    start, positions = lay_out(planned, metadata)
    ends = {name: positions[name] + planned[name].nbytes for name in planned}
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")  # of this process alone
    try:
        with open(unfinished, "wb") as stream:
            stream.write(start)

            def write(name: str, part: Array) -> None:
                assert positions[name] + part.nbytes <= ends[name], f"{name}: more than was planned"
                stream.seek(positions[name])
                stream.write(np.ascontiguousarray(part).data)
                positions[name] += part.nbytes

            yield write
        assert positions == ends, f"{path}: less than was planned"
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_shards(
    folder: Path,
    planned: Mapping[str, Mapping[str, Planned]],
    parts: Callable[[str], Iterable[tuple[str, Array]]],
    max_shard_bytes: int,
) -> None:
    """Write a folder's weight files, one or several and their index.

    Args:
        folder: it is there already.
        planned: of each tensor of the model, what lies in the files for it: itself, or its codes and its scales.
        parts: gives the numbers of one of them piece by piece, with the name that each piece belongs to.
        max_shard_bytes: of a file; what lies there for one tensor is never divided.
    """
    sizes = {name: sum(stored.nbytes for stored in planned[name].values()) for name in planned}
    shards = plan_shards(sizes, max_shard_bytes)
    for file_name, names in shards.items():
        stored = {key: value for name in names for key, value in planned[name].items()}
        with new_tensor_file(folder / file_name, stored) as write:
            for name in names:
                for key, part in parts(name):
                    write(key, part)
    if len(shards) > 1:
        weight_map = {key: file_name for file_name, names in shards.items() for name in names for key in planned[name]}
        write_index(folder, weight_map, sum(sizes.values()))


def plan_shards(sizes: Mapping[str, int], max_shard_bytes: int) -> dict[str, list[str]]:
    """File name -> names of its tensors, in the order given; a tensor larger than a shard has one for itself."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {SINGLE_NAME: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def write_index(folder: Path, weight_map: Mapping[str, str], total_bytes: int) -> None:
    """The index of several shards: which tensor lies in which file."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
