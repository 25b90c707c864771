"""Writes a golden kit: all that a port in any language needs to check itself without pg2ref, in a few MB.

    python tools/make_golden_kit.py kit
    python tools/make_golden_kit.py kit --size small --keep-checkpoints
    python tools/make_golden_kit.py kit --model pg2ref-shapes --model ./my-checkpoint

For the small random model and for 3b-224, 10b-448 and 28b-224 with two layers a tower: config.json, weights.json (the
recipe of the weights and their digests: tools/portable_numbers.py, of which the kit has a copy), inputs.json,
inputs.safetensors (pixels, masks, rotation table) and golden.safetensors, the summaries of every stage in float64 with
the noise of float32 and bf16. The built-in model, and with --model any checkpoint, has no recipe: its weights.json
holds the digests of its files. Without options all of these are made. The page that says what to do with
them is pg2ref/parity/PORTING.md. Random models lie on disk while their entries are made, the largest 2.4 GB.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import random_checkpoint
from PIL import Image
from portable_numbers import portable_bits
from released_json import cut_config
from tool_help import help_of

import pg2ref
from pg2ref.api import Model
from pg2ref.arrays import Array
from pg2ref.checkpoint.locate import locate
from pg2ref.checkpoint.safetensors_writer import Planned, new_tensor_file
from pg2ref.checkpoint.tensor_table import expected_shapes
from pg2ref.config import parse_config
from pg2ref.demo import builtin
from pg2ref.demo.scene import draw_scene
from pg2ref.model import gemma2
from pg2ref.parity.records import open_record
from pg2ref.recording.record import record

SIZES = ("small", "3b-224", "10b-448", "28b-224")
SEED = 5
SCENE_SEED, SCENE_PX = 3, 320
PROMPT = "detect red circle ; blue square"
STEPS = 4


def write_checkpoint(size: str, folder: Path) -> dict[str, Any]:
    """The size's model, its weights by the portable recipe; what weights.json says of them."""
    tensors: list[dict[str, Any]] = []

    def numbers(name: str, shape: tuple[int, ...], seed: int) -> Iterator[Array]:
        mean, deviation = random_checkpoint.distribution(name, shape)
        digest = hashlib.sha256()
        for bits in portable_bits(name, int(np.prod(shape)), mean, deviation, seed):
            digest.update(bits.astype("<u2").tobytes())
            yield bits
        about = {"name": name, "shape": list(shape), "mean": mean, "deviation": deviation}
        tensors.append({**about, "sha256": digest.hexdigest()})

    random_checkpoint.write_checkpoint(folder, cut_config(size), seed=SEED, numbers=numbers)
    assert len(tensors) == len(expected_shapes(parse_config(cut_config(size))))
    return {"recipe": "portable_numbers.py", "seed": SEED, "tensors": sorted(tensors, key=lambda one: one["name"])}


def digests(checkpoint: Path) -> dict[str, Any]:
    """What weights.json says of a model that follows no recipe: which files they are."""
    files = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with open(path, "rb") as stream:
            files[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"recipe": None, "files": files}


def write_entry(checkpoint: Path, folder: Path, image: Path, weights: dict[str, Any]) -> None:
    """Inputs and golden summaries of one model, and what is to be said of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(checkpoint / "config.json", folder)
    model = pg2ref.load(checkpoint, precision="f64")
    golden = folder / "golden.safetensors"
    record(
        model,
        [image],
        PROMPT,
        golden,
        points=lambda stage: not stage.endswith("attention_weights"),
        mode="stats",
        steps=STEPS,
        with_floor=True,
    )
    read = open_record(golden)
    steps = {name.partition("/")[0] for name in read.stages if name.startswith("step_")}
    answer_ids = json.loads(read.facts["answer_ids"])[: len(steps)]
    write_inputs(model, image, answer_ids, folder)
    (folder / "weights.json").write_text(json.dumps(weights, indent=1) + "\n", encoding="utf-8")


def write_inputs(model: Model, image: Path, answer_ids: list[int], folder: Path) -> None:
    """inputs.json and inputs.safetensors: ids, pixels, who reads whom, and the rotation of each position."""
    prepared = model.prepare(image, PROMPT)
    text, length = model.config.text, len(prepared.prompt_ids)
    rows = np.zeros((length + len(answer_ids), text.hidden_size), np.float32)
    cache = model.numbers.empty_cache(len(rows), length)
    located = gemma2.locate_rows(text, rows, [cache], "transformers", model.numbers.ops)
    pixel_values_CYX, value_of_level = prepared.pixel_values[0], values_of_levels()
    levels_CYX = np.rint((pixel_values_CYX + 1) * 127.5).astype(np.uint8)
    assert np.array_equal(value_of_level[levels_CYX], pixel_values_CYX)
    arrays = {
        "pixels/levels": levels_CYX,
        "pixels/value_of_level": value_of_level,
        "mask/full/first_key": located.full[0].first_key_T,
        "mask/full/last_key": located.full[0].last_key_T,
        "mask/sliding/first_key": located.sliding[0].first_key_T,
        "mask/sliding/last_key": located.sliding[0].last_key_T,
        "rotation/cos": located.cos_TR,
        "rotation/sin": located.sin_TR,
    }
    planned = {name: Planned(array.dtype, array.shape) for name, array in arrays.items()}
    with new_tensor_file(folder / "inputs.safetensors", planned) as write:
        for name, array in arrays.items():
            write(name, np.ascontiguousarray(array))
    facts = {
        "prompt": PROMPT,
        "prompt_ids": prepared.prompt_ids,
        "answer_ids": answer_ids,
        "image_token_id": model.config.image_token_id,
        "first_position": 1,
    }
    (folder / "inputs.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


def values_of_levels() -> Array:
    """The pixel value of each level, float32: (level / 255 - 0.5) / 0.5."""
    return ((np.arange(256) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)


@click.command(help=help_of(__doc__))
@click.argument("kit", type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", "sizes", multiple=True, type=click.Choice(SIZES), help="Only this; may be given several times.")
@click.option("--model", "models", multiple=True, help="Only this folder or name; may be given several times.")
@click.option("--keep-checkpoints", is_flag=True, help="Leave each random model at SIZE/checkpoint.")
def main(kit: Path, sizes: tuple[str, ...], models: tuple[str, ...], keep_checkpoints: bool) -> None:
    """Make the picture, then each model, its entry, and perhaps nothing more of it."""
    if not sizes and not models:
        sizes, models = SIZES, (builtin.NAME,)
    kit.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_scene(SCENE_SEED, SCENE_PX).pixels_YXC).save(kit / "scene.png")
    shutil.copy(Path(__file__).with_name("portable_numbers.py"), kit)
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=kit) as temporary:
            checkpoint = kit / size / "checkpoint" if keep_checkpoints else Path(temporary)
            write_entry(checkpoint, kit / size, kit / "scene.png", write_checkpoint(size, checkpoint))
        click.echo(kit / size)
    for name in models:
        entry = kit / os.path.basename(os.path.abspath(name))
        write_entry(locate(name), entry, kit / "scene.png", digests(locate(name)))
        click.echo(entry)


if __name__ == "__main__":
    main()
