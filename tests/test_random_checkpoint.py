"""tools/random_checkpoint.py: what it leaves in a folder that was used before, and who may read it."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import random_checkpoint
from oracles import naive_quantized
from released_json import released_config

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.checkpoint.manifest import MANIFEST_NAME
from pg2ref.quantized import QuantizedMatrix, dequantize


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


def test_the_numbers_of_a_seed_never_change(tmp_path: Path) -> None:
    """Records and tables were made with them: an SFC64 stream keyed by seed and name, rounded to bf16."""
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    key = int.from_bytes(hashlib.sha256(f"3 {name}".encode()).digest()[:16], "little")
    drawn = np.random.Generator(np.random.SFC64(key)).standard_normal((160, 72), np.float32)
    np.testing.assert_array_equal(written(tmp_path, seed=3)[name], f32_to_bf16(drawn * np.float32(72**-0.5)))


@pytest.mark.parametrize(("to", "vision"), [("int8", "int8"), ("int4", "bf16")])
def test_quantised_form(to: str, vision: str, tmp_path: Path) -> None:
    """Codes and scales that stand for weights of the size that the plain ones have, and fill up with zeros."""
    config = released_config("small")
    random_checkpoint.write_checkpoint(tmp_path, config, seed=1, tokenizer=False, to=to, vision=vision)
    quantized = load_checkpoint(tmp_path)
    assert quantized.weight_type == to
    for name, weight in quantized.weights.items():
        if isinstance(weight, QuantizedMatrix):
            numbers = dequantize(weight, np.dtype(np.float32))
            _, deviation = random_checkpoint.distribution(name, weight.shape)
            assert np.std(numbers) == pytest.approx(deviation, rel=0.15), name
            assert abs(np.mean(numbers)) < 0.1 * deviation, name
    embedding = quantized.params.language_model.embed_tokens
    assert isinstance(embedding, QuantizedMatrix)
    zero = 1 << embedding.bits - 1
    assert set(naive_quantized.fillers(embedding.codes[:2], (32, 72), embedding.bits)) == {zero}
    codes = embedding.codes if embedding.bits == 8 else np.stack([embedding.codes & 15, embedding.codes >> 4])
    assert len(np.unique(codes)) > {8: 150, 4: 15}[embedding.bits]
    fc1 = quantized.params.vision_tower.layers[0].fc1.weight
    assert isinstance(fc1, QuantizedMatrix) == (vision == "int8")


def test_outputs_that_fill_up_have_no_scale(tmp_path: Path) -> None:
    config = released_config("small")
    config["text_config"] = {**config["text_config"], "intermediate_size": 150}
    random_checkpoint.write_checkpoint(tmp_path, config, tokenizer=False, to="int4")
    matrix = load_checkpoint(tmp_path).params.language_model.layers[0].gate_proj
    assert isinstance(matrix, QuantizedMatrix)
    assert set(naive_quantized.fillers(matrix.codes, matrix.shape, 4)) == {8}
    assert matrix.scales[:9].all()
    assert not matrix.scales[9, :, 150 - 144 :].any()
    assert matrix.scales[9, :, : 150 - 144].all()


def test_plain_weights_replace_quantised_ones(tmp_path: Path) -> None:
    config = released_config("small")
    random_checkpoint.write_checkpoint(tmp_path, config, tokenizer=False, to="int4", max_shard_bytes=100_000)
    assert (tmp_path / MANIFEST_NAME).exists()
    written(tmp_path, seed=1)
    assert not (tmp_path / MANIFEST_NAME).exists()
    assert load_checkpoint(tmp_path).weight_type == "bf16"
