"""The table of results: pg2ref itself runs an exported folder on scenes that nothing was trained on.

    python tools/train_demo/evaluate.py out/pg2ref-shapes --processes 2  # 2,000 scenes
    python tools/train_demo/evaluate.py out/pg2ref-shapes --limit 200 --json table.json

Each scene is asked one question of each kind (scene_examples.py); of captions one language. "detect" and "segment"
name labels that are not in the scene too: what is found of those counts against precision.
"""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import numpy as np
from mask_crops import crop
from mask_vae import MaskVae, read_exported
from PIL import Image
from scene_examples import example
from scoring import Tally, match, same_objects
from seeds import HELD_OUT
from table import table

import pg2ref
from pg2ref.api import Model
from pg2ref.checkpoint.vae_npz import VAE_NAME
from pg2ref.demo.scene import Scene
from pg2ref.demo.tasks import NOTHING, Task
from pg2ref.model.vqvae import decode_codes
from pg2ref.outputs.segmentation import paste

MOST_TOKENS = 120
IN_A_PART = 50  # scenes that a process is given at a time


def ask(model: Model, scene: Scene, task: Task, tally: Tally) -> None:
    """Ask one question and add up what the answer is worth."""
    result = model.generate(Image.fromarray(scene.pixels_YXC), task.prompt, max_new_tokens=MOST_TOKENS)
    kind, *rest = task.prompt.split(" ", 1)
    if kind in ("detect", "segment"):
        tally.found[kind].append(match(scene, rest[0].split(" ; "), result.objects))
    elif kind == "caption":
        tally.right[task.kind].append(same_objects(result.text, task.answer, rest[0]))
    elif task.kind == "ocr" and task.answer == NOTHING:
        tally.right["ocr where there is no text"].append(result.text == NOTHING)
    else:
        tally.right[task.kind].append(result.text == task.answer)


def round_trip(model: Model, vae: MaskVae, scene: Scene) -> list[float]:
    """What is left of each object's mask after the codes alone, given its box."""
    ious = []
    for one in scene.objects:
        x0, y0, x1, y1 = one.box_xyxy_px
        codes = vae.encode(crop(one.mask_YX[y0:y1, x0:x1])[None])[0]
        seen_YX = paste(decode_codes(model.mask_decoder, codes), one.box_xyxy_px, (scene.size_px, scene.size_px))
        ious.append(np.count_nonzero(seen_YX & one.mask_YX) / np.count_nonzero(seen_YX | one.mask_YX))
    return ious


def tally_of(folder: Path, seeds: range) -> Tally:
    """Ask about these scenes. The kernels compute in float32, as the reference does, but for rounding."""
    model = pg2ref.load(folder, backend="numba", precision="f32")
    vae, tally = read_exported(folder / VAE_NAME), Tally()

    def encode(mask_YX: np.ndarray) -> list[int]:
        return vae.encode(crop(mask_YX)[None])[0].tolist()

    for seed in seeds:
        _, scene, tasks = example(seed, model.config.vision.image_size, encode)
        for task in tasks:
            ask(model, scene, task, tally)
        tally.kept += round_trip(model, vae, scene)
    return tally


def evaluate(folder: Path, scenes: int, processes: int = 1) -> dict[str, tuple[float, int]]:
    """The rows of the table for the first held-out scenes; several processes have one thread each."""
    if processes == 1:
        return tally_of(folder, HELD_OUT[:scenes]).rows()
    os.environ |= dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"), "1")  # read by the new processes
    parts = [HELD_OUT[:scenes][start : start + IN_A_PART] for start in range(0, scenes, IN_A_PART)]
    tally = Tally()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(tally_of, [folder] * len(parts), parts):
            tally.add(part)
    return tally.rows()


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--limit", default=len(HELD_OUT), show_default=True, help="How many scenes.")
@click.option("--processes", default=1, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows there too.")
def main(folder: Path, limit: int, processes: int, json_file: Path | None) -> None:
    """Evaluate, print, keep."""
    rows = evaluate(folder, limit, processes)
    click.echo(table(rows, limit))
    if json_file:
        json_file.write_text(json.dumps({"scenes": limit, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
