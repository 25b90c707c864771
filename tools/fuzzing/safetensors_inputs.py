"""safetensors files, indices of shards and quantization.json: damaged, and well-formed but absurd."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.mutation import HOSTILE_TEXTS, MOST_BYTES, Rng, hostile_json, json_bytes, mutate, mutate_json
from fuzzing.target import MB, Target
from pg2ref.checkpoint.manifest import MANIFEST_NAME, read_manifest
from pg2ref.checkpoint.safetensors_file import DTYPES, read_tensors
from pg2ref.checkpoint.shards import INDEX_NAME, weight_files

SHAPES: tuple[list[int], ...] = ([], [0], [1], [5], [2, 3], [3, 1, 2], [7, 11])


def safetensors_bytes(header: bytes, data: bytes) -> bytes:
    """The format's three parts, whatever is in them."""
    return len(header).to_bytes(8, "little") + header + data


def random_header(rng: Rng) -> tuple[dict[str, Any], bytes]:
    """A valid header of a few tensors, and bytes for them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if rng.random() < 0.5 else {}
    position = 0
    for number in range(rng.randrange(5)):
        stored, shape = rng.choice(list(DTYPES)), rng.choice(SHAPES)
        size = int(np.prod(shape, dtype=np.int64)) * DTYPES[stored].itemsize
        offsets = [position, position + size]
        header[f"layer.{number}.weight"] = {"dtype": stored, "shape": shape, "data_offsets": offsets}
        position += size
    data = bytes(position) if rng.random() < 0.7 else rng.randbytes(position)
    return header, data


def make_file(rng: Rng) -> bytes:
    """A file whose bytes were changed, or whose header says something else."""
    header, data = random_header(rng)
    valid = safetensors_bytes(json.dumps(header).encode(), data)
    how = rng.random()
    if how < 0.1:
        return valid
    if how < 0.5:
        return mutate(valid, rng, [valid])
    changed = mutate_json(header, rng) if how < 0.9 else {rng.choice(HOSTILE_TEXTS): hostile_json(rng)}
    text = json_bytes(changed, rng)
    if rng.random() < 0.2:
        data = mutate(data, rng, [valid])
    return safetensors_bytes(text + b" " * rng.randrange(3), data)


def read_file(content: bytes, folder: Path) -> None:
    """Map it, and look at every number: what is a view must lie inside the file."""
    path = folder / "model.safetensors"
    path.write_bytes(content)
    found = read_tensors(path)
    stored = sum(tensor.nbytes for tensor in found.tensors.values())
    assert stored <= found.file_bytes == len(content)
    for tensor in found.tensors.values():
        assert not tensor.flags.writeable
        tensor.tobytes()


def make_index(rng: Rng) -> bytes:
    """The index of three shards."""
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = {"metadata": {"total_size": 30}, "weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}}
    if rng.random() < 0.5:
        return json_bytes(mutate_json(index, rng), rng)
    return mutate(json.dumps(index).encode(), rng, [json.dumps(index).encode()])


def read_index(content: bytes, folder: Path) -> None:
    """Which files it names; all must lie in the folder."""
    (folder / INDEX_NAME).write_bytes(content)
    for number in (1, 2, 3):
        (folder / f"model-0000{number}-of-00003.safetensors").touch()
    assert {path.parent for path in weight_files(folder)} == {folder}


def make_manifest(rng: Rng) -> bytes:
    """quantization.json of two matrices."""
    tensors = {"a.weight": {"bits": 8, "shape": [7, 33]}, "b.weight": {"bits": 4, "shape": [16, 64]}}
    valid = {"format": "pg2ref-quantized/1", "group": 32, "to": "int8", "source": {"name": "x"}, "tensors": tensors}
    if rng.random() < 0.6:
        return json_bytes(mutate_json(valid, rng), rng)
    return mutate(json.dumps(valid).encode(), rng, [json.dumps(valid).encode()])


def read_quantization(content: bytes, folder: Path) -> None:
    """The manifest alone; its tensors are checked against files elsewhere."""
    (folder / MANIFEST_NAME).write_bytes(content)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert all(entry.bits in (4, 8) and min(entry.shape) > 0 for entry in manifest.tensors.values())


SMALL_FILES = 16 * MB + 8 * MOST_BYTES  # Python's objects for a JSON text of MOST_BYTES, with much to spare
TARGETS = (
    Target("safetensors", make_file, read_file, SMALL_FILES),
    Target("index", make_index, read_index, SMALL_FILES),
    Target("manifest", make_manifest, read_quantization, SMALL_FILES),
)
