"""Writes a checkpoint folder in the released layout with seeded random weights, of any published size or a small one.

    python tools/random_checkpoint.py 3b-224 /data/random-3b-224
    python tools/random_checkpoint.py small /data/small --seed 7
    python tools/random_checkpoint.py 28b-896 /data/random-28b --max-shard-gb 3

Transformers loads the same folder. Shards are written one after the other, so memory holds one shard at a time.
Every tensor has a random stream of its own, keyed by the seed and its name: the same values whatever the shards.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import safetensors
import tokenizer_model
from released_json import preprocessor_config, released_config

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.checkpoint.tensor_table import expected_shapes
from pg2ref.config import parse_config
from pg2ref.published import PUBLISHED

LOC_AND_SEG = 1024 + 128
CHUNK = 1 << 24

# Mean and deviation of w in 1 + w. A small gain behind attention keeps a token's own voice above the image's, or
# every answer would be one token again and again; a last norm around 0 keeps the tied head from naming the token
# that was just read.
GEMMA_NORMS = {"post_attention_layernorm": (-0.5, 0.3), "norm": (-1.0, 1.0)}


def released_name(canonical: str) -> str:
    """The name a tensor has in the release (family A of checkpoint/tensor_table.py)."""
    name = canonical.replace("language_model.", "language_model.model.", 1)
    name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return "language_model." + name if name == "lm_head.weight" else name


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """bf16 bits of a weight whose size keeps activations near one and every feature of the model alive."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    rng = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))
    mean, deviation = distribution(name, shape)
    bits = np.empty(int(np.prod(shape)), np.uint16)
    for start in range(0, bits.size, CHUNK):
        values = rng.standard_normal(min(CHUNK, bits.size - start), np.float32)
        values *= np.float32(deviation)
        values += np.float32(mean)
        bits[start : start + CHUNK] = f32_to_bf16(values)
    return bits.reshape(shape)


def distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a weight."""
    inputs = int(np.prod(shape[1:]))
    if name.endswith(".bias"):
        return 0.0, 0.2
    if "vision_tower" in name and "norm" in name:
        return 1.0, 0.3
    if "norm" in name:  # Gemma's: 1 + w
        return GEMMA_NORMS.get(name.split(".")[-2], (0.0, 0.3))
    if "position_embedding" in name:
        return 0.0, 0.5
    if "embed_tokens" in name or "lm_head" in name:
        return 0.0, inputs**-0.5
    sharp = "q_proj" in name or "k_proj" in name  # attention far from uniform, so that soft caps and masks matter
    return 0.0, (2.0 if sharp else 1.0) * inputs**-0.5


def write_checkpoint(
    folder: Path,
    config_json: Mapping[str, Any],
    *,
    seed: int = 0,
    max_shard_bytes: int = 2 << 30,
    tokenizer: bool = True,
) -> None:
    """Write config, weights, preprocessor and, where asked, a tokenizer of the model's vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    config = parse_config(config_json)
    write_json(folder / "config.json", config_json)
    write_json(folder / "preprocessor_config.json", preprocessor_config(config))
    generation = {"bos_token_id": 2, "eos_token_id": list(config.eos_token_ids), "pad_token_id": 0}
    write_json(folder / "generation_config.json", generation)
    if tokenizer:
        tokenizer_model.write_tokenizer_files(folder, config.image_token_id - LOC_AND_SEG)
    shapes = {released_name(name): shape for name, shape in expected_shapes(config).items()}
    write_weights(folder, shapes, seed, max_shard_bytes)


def write_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, max_shard_bytes: int) -> None:
    """One safetensors file, or shards with their index, each written as soon as it is full.

    Weights that lie there already go first: a `model.safetensors` would win over new shards.
    """
    remove_weights(folder)
    shards = list(plan_shards(shapes, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file_name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: random_tensor(name, shapes[name], seed) for name in names}
        write_shard(folder / file_name, tensors)
        weight_map |= dict.fromkeys(names, file_name)
    if len(shards) > 1:
        total_size = sum(2 * int(np.prod(shape)) for shape in shapes.values())
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def remove_weights(folder: Path) -> None:
    """Remove the safetensors files of a folder and their index."""
    for pattern in ("*.safetensors", "*.safetensors.index.json"):
        for path in folder.glob(pattern):
            path.unlink()


def write_shard(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write bf16 bits under a name that no reader looks for, and rename: a file that is there is whole."""
    specs = {  # pointers, not copies: `tensors` keeps the numbers alive
        name: safetensors.TensorSpec(
            dtype="bfloat16", shape=bits.shape, data_ptr=bits.ctypes.data, data_len=bits.nbytes
        )
        for name, bits in tensors.items()
    }
    unfinished = path.with_name(path.name + ".part")
    safetensors.serialize_file(specs, unfinished, {"format": "pt"})
    umask = os.umask(0)  # the only way to read it
    os.umask(umask)
    unfinished.chmod(0o666 & ~umask)  # safetensors makes it the owner's alone
    unfinished.replace(path)


def plan_shards(shapes: Mapping[str, tuple[int, ...]], max_shard_bytes: int) -> Iterator[list[str]]:
    """Names of the tensors of each shard; a tensor larger than a shard has one for itself."""
    names: list[str] = []
    filled = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if names and filled + size > max_shard_bytes:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented JSON with a newline at its end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@click.command(help=__doc__)
@click.argument("size", type=click.Choice(["small", *PUBLISHED]))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", default=0, show_default=True)
@click.option("--max-shard-gb", default=2.0, show_default=True, help="A shard is at most this large, or one tensor.")
def main(size: str, folder: Path, seed: int, max_shard_gb: float) -> None:
    """Parse, write, say what was written."""
    write_checkpoint(folder, released_config(size), seed=seed, max_shard_bytes=int(max_shard_gb * 2**30))
    written = sum(path.stat().st_size for path in folder.iterdir())
    click.echo(f"{folder}: {size}, seed {seed}, {written / 1e6:,.1f} MB")


if __name__ == "__main__":
    main()
