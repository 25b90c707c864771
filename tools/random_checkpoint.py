"""Writes a checkpoint folder in the released layout with seeded random weights, of any published size or a small one.

    python tools/random_checkpoint.py 3b-224 /data/random-3b-224
    python tools/random_checkpoint.py small /data/small --seed 7
    python tools/random_checkpoint.py 28b-896 /data/random-28b --max-shard-gb 3
    python tools/random_checkpoint.py 28b-224 /data/random-28b-int4 --to int4

Transformers loads the same folder, unless it is quantised: then codes and scales are drawn themselves, in the layout
that `pg2ref quantize` writes. Memory holds pieces of one tensor at a time. Every tensor has a random stream of its own,
keyed by the seed and its name: the same values whatever the shards.
"""

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import tokenizer_model
from released_json import preprocessor_config, released_config
from tool_help import help_of

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.checkpoint.manifest import BITS_OF, MANIFEST_NAME, Manifest, part_names, write_manifest
from pg2ref.checkpoint.quantize import BF16, VISION_TYPES, Plan, plan_tensor, quantized_entries
from pg2ref.checkpoint.safetensors_writer import Planned, write_shards
from pg2ref.checkpoint.tensor_table import expected_shapes, released_name
from pg2ref.config import parse_config
from pg2ref.published import PUBLISHED
from pg2ref.quantized import BLOCK_OUTPUTS, GROUP, HIGHEST, LOWEST, WORD, ZERO

LOC_AND_SEG = 1024 + 128
CHUNK = 1 << 24
CODE_DEVIATION = {8: 48, 4: 3.2}  # near that of normal weights in groups of 32

# Mean and deviation of w in 1 + w. A small gain behind attention keeps a token's own voice above the image's, or
# every answer would be one token again and again; a last norm around 0 keeps the tied head from naming the token
# that was just read.
GEMMA_NORMS = {"post_attention_layernorm": (-0.5, 0.3), "norm": (-1.0, 1.0)}


def random_stream(name: str, seed: int) -> np.random.Generator:
    """The random numbers of one tensor."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


def random_numbers(name: str, shape: tuple[int, ...], seed: int) -> Iterator[Array]:
    """bf16 bits of a weight, piece by piece, of a size that keeps activations near one and every feature alive."""
    rng = random_stream(name, seed)
    mean, deviation = distribution(name, shape)
    size = int(np.prod(shape))
    for start in range(0, size, CHUNK):
        values = rng.standard_normal(min(CHUNK, size - start), np.float32)
        values *= np.float32(deviation)
        values += np.float32(mean)
        yield f32_to_bf16(values)


def random_matrix(name: str, shape: tuple[int, ...], plan: Plan, seed: int) -> Iterator[tuple[str, Array]]:
    """The same in quantised form, codes and scales drawn by themselves: pieces with the tensors they belong to."""
    assert plan.bits is not None
    rng, bits = random_stream(name, seed), plan.bits
    codes_name, scales_name = part_names(name)
    blocks, words, lanes, _ = plan.stored[codes_name].shape
    blocks_at_once = max(1, CHUNK // (words * lanes * WORD))
    table = code_table(bits)
    unit = distribution(name, shape)[1] / CODE_DEVIATION[bits]
    for first in range(0, blocks, blocks_at_once):
        count = min(blocks_at_once, blocks - first)
        drawn = rng.integers(0, table.size, (count, words, lanes, WORD), table_index(table))
        codes = table[drawn]
        scales = unit * np.exp(0.15 * rng.standard_normal((count, -(-shape[1] // GROUP), lanes), np.float32))
        if bits == 4:
            scales *= rng.choice(np.array([-1, 1], np.float32), scales.shape)
        if shape[0] % BLOCK_OUTPUTS or shape[1] % GROUP:
            fill_up(codes, scales, shape, bits, first)
        yield codes_name, codes
        yield scales_name, f32_to_bf16(scales)


def code_table(bits: int) -> Array:
    """Stored bytes of normal codes, each as often as it should occur: a uniform index gives a random one."""
    quantiles = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
    codes = np.clip(np.rint(quantiles * CODE_DEVIATION[bits]), LOWEST[bits], HIGHEST[bits]) + ZERO[bits]
    codes = codes.astype(np.uint8)
    return codes if bits == 8 else (codes[:, None] << 4 | codes).reshape(-1)


def table_index(table: Array) -> type[np.unsignedinteger[Any]]:
    """The type whose numbers are the table's indices."""
    return np.uint8 if table.size == 256 else np.uint16


def fill_up(codes: Array, scales: Array, shape: tuple[int, ...], bits: int, first_block: int) -> None:
    """Outputs and inputs that only fill up a block or a group: the code of zero, and for outputs the scale 0."""
    (outputs, inputs), (blocks, words, lanes, _) = shape, codes.shape
    output = np.arange(first_block * lanes, (first_block + blocks) * lanes).reshape(blocks, 1, lanes, 1)
    scales[np.broadcast_to(output[:, :, :, 0] >= outputs, scales.shape)] = 0
    halves = 8 // bits
    for half in range(halves):
        word = np.arange(words)[:, None, None] * halves + half
        is_filler = (word * WORD + np.arange(WORD) >= inputs) | (output >= outputs)
        mask = np.uint8((1 << bits) - 1 << half * bits)
        zero = np.uint8(ZERO[bits] << half * bits)
        codes[...] = np.where(is_filler, codes & ~mask | zero, codes)


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
    to: str | None = None,
    vision: str = "bf16",
    numbers: Callable[[str, tuple[int, ...], int], Iterator[Array]] = random_numbers,
) -> None:
    """Write config, weights, preprocessor and, where asked, a tokenizer of the model's vocabulary.

    `to` and `vision` as in checkpoint/quantize.py; without `to` all weights are bf16. `numbers` draws plain ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = parse_config(config_json)
    write_json(folder / "config.json", config_json)
    write_json(folder / "preprocessor_config.json", preprocessor_config(config))
    generation = {"bos_token_id": 2, "eos_token_id": list(config.eos_token_ids), "pad_token_id": 0}
    write_json(folder / "generation_config.json", generation)
    if tokenizer:
        tokenizer_model.write_tokenizer_files(folder, config.image_token_id - LOC_AND_SEG)
    remove_weights(folder)
    shapes = {released_name(name): shape for name, shape in expected_shapes(config).items()}
    plans = {
        name: plan_tensor(name, shape, BF16, to, vision) if to else Plan(None, {name: Planned(BF16, shape)})
        for name, shape in shapes.items()
    }

    def parts(name: str) -> Iterator[tuple[str, Array]]:
        if plans[name].bits is None:
            return ((name, bits) for bits in numbers(name, shapes[name], seed))
        return random_matrix(name, shapes[name], plans[name], seed)

    write_shards(folder, {name: plan.stored for name, plan in plans.items()}, parts, max_shard_bytes)
    if to:
        source = {"name": f"random, seed {seed}", "weights": "none", "files": {}}
        write_manifest(folder, Manifest(to, source, quantized_entries(plans, shapes)))


def remove_weights(folder: Path) -> None:
    """Remove the weights that lie in a folder already: a `model.safetensors` would win over new shards."""
    for pattern in ("*.safetensors", "*.safetensors.index.json", MANIFEST_NAME):
        for path in folder.glob(pattern):
            path.unlink()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented JSON with a newline at its end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@click.command(help=help_of(__doc__))
@click.argument("size", type=click.Choice(["small", *PUBLISHED]))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", default=0, show_default=True)
@click.option("--max-shard-gb", default=2.0, show_default=True, help="A shard is at most this large, or one tensor.")
@click.option("--to", type=click.Choice(list(BITS_OF)), help="Codes and scales instead of bf16.")
@click.option("--vision", type=click.Choice(VISION_TYPES), default="bf16", show_default=True, help="With --to.")
def main(size: str, folder: Path, seed: int, max_shard_gb: float, to: str | None, vision: str) -> None:
    """Parse, write, say what was written."""
    max_shard_bytes = int(max_shard_gb * 2**30)
    write_checkpoint(folder, released_config(size), seed=seed, max_shard_bytes=max_shard_bytes, to=to, vision=vision)
    written = sum(path.stat().st_size for path in folder.iterdir())
    click.echo(f"{folder}: {size}, seed {seed}, {written / 1e6:,.1f} MB")


if __name__ == "__main__":
    main()
