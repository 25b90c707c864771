"""Writes safetensors files whose tensors never lie in memory whole, and the index that names their shards.

Types and shapes of a file's tensors are known before their numbers: the header is written first, and each piece of a
tensor goes straight to its place. The format is described in safetensors_file.py, the layout of a folder in shards.py.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
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


def lay_out(planned: Mapping[str, Planned]) -> tuple[bytes, dict[str, int]]:
    """The start of a file, length and header, and where in the file each tensor begins.

    Tensors of whole cache lines come first, so that all of them begin at one.
    """
    header: dict[str, Any] = {"__metadata__": METADATA}
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
def new_tensor_file(path: Path, planned: Mapping[str, Planned]) -> Iterator[Callable[[str, Array], None]]:
    """A safetensors file in the making: gives a function that writes the next numbers of a tensor.

    Parts of different tensors may come in any order; in the end each must have come whole. An OSError says what the
    file system refuses, an existing file included.
    """
    start, positions = lay_out(planned)
    ends = {name: positions[name] + planned[name].nbytes for name in planned}
    with open(path, "xb") as stream:
        stream.write(start)

        def write(name: str, part: Array) -> None:
            assert positions[name] + part.nbytes <= ends[name], f"{name}: more than was planned"
            stream.seek(positions[name])
            stream.write(np.ascontiguousarray(part).data)
            positions[name] += part.nbytes

        yield write
    assert positions == ends, f"{path}: less than was planned"


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
