"""tools/random_checkpoint.py: what it leaves in a folder that was used before, and who may read it."""

import os
from pathlib import Path

import numpy as np
import random_checkpoint
from released_json import released_config

from pg2ref.arrays import Array
from pg2ref.checkpoint.loader import load_checkpoint


def written(folder: Path, seed: int, max_shard_bytes: int = 2 << 30) -> dict[str, Array]:
    config = released_config("small")
    random_checkpoint.write_checkpoint(folder, config, seed=seed, max_shard_bytes=max_shard_bytes, tokenizer=False)
    return {name: np.array(tensor) for name, tensor in load_checkpoint(folder).tensors.items()}


def test_the_latest_weights_of_a_folder_count(tmp_path: Path) -> None:
    """A model.safetensors would win over new shards, and an old index would name shards that are gone."""
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    first = written(tmp_path, seed=1)
    sharded = written(tmp_path, seed=2, max_shard_bytes=400_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = written(tmp_path, seed=1)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert other.read_text() == "mine"
    name = next(known for known in first if known.endswith("embed_tokens.weight"))
    assert (first[name] != sharded[name]).any()
    assert all((again[known] == first[known]).all() for known in first)


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        written(tmp_path, seed=1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
