"""Training scenes on disk, in shards that are drawn when they are first asked for and read from then on.

A shard holds what the stages need of each scene: its pixels at the model's size, the facts of its patches, and its
objects, of which `remembered` makes a scene again that the package's own tasks can ask about.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mask_crops import crop
from mask_vae import MaskVae
from patch_facts import patch_facts
from PIL import Image
from scene_examples import SIZES_PERCENT
from seeds import FIRST_FOR_TRAINING, SIZE_STREAM

from pg2ref.arrays import Array
from pg2ref.demo.drawing.colours import COLOURS
from pg2ref.demo.drawing.dice import Dice
from pg2ref.demo.drawing.layout import Placed
from pg2ref.demo.drawing.shapes import SHAPES
from pg2ref.demo.scene import Scene, SceneObject, draw_scene

SHARD = 512
MOST_OBJECTS = 4
IMAGE_PX = 112
COLOUR_NAMES = tuple(COLOURS)


class Scenes(NamedTuple):
    """Scenes as arrays; N scenes, O objects a scene, -1 in `shape_NO` where there are fewer."""

    seed_N: Array
    size_N: Array  # px, of the scene as it was drawn
    pixels_NYXC: Array  # uint8 at the model's size
    shape_NO: Array
    colour_NO: Array
    box_NO4: Array  # px as drawn: x0, y0, x1, y1
    area_NO: Array  # share of the picture
    degrees_NO: Array
    codes_NO16: Array
    owner_NP: Array
    anchor_NP: Array
    inside_NPC: Array
    letters_NPL: Array
    word_NL: Array
    text_N: Array  # empty where there is none

    def take(self, rows: Array) -> "Scenes":
        """Some of the scenes."""
        return Scenes(*(array[rows] for array in self))


def shard(folder: Path, first_seed: int, vae: MaskVae) -> Scenes:
    """The SHARD scenes from a seed on: read, or drawn and kept."""
    path = folder / f"{first_seed}.npz"
    if not path.exists():
        drawn = draw(range(first_seed, first_seed + SHARD), vae)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        with open(unfinished, "wb") as file:
            np.savez(file, **drawn._asdict())
        unfinished.replace(path)
    with np.load(path) as stored:
        return Scenes(*(stored[name] for name in Scenes._fields))


def training_shard(folder: Path, reading: int, scenes: int, vae: MaskVae) -> Scenes:
    """The shard that is read as the n-th, of the training scenes in a run's folder; after `scenes` from the first."""
    return shard(folder / "scenes", FIRST_FOR_TRAINING + reading * SHARD % scenes, vae)


def steps_in_shard(batch_size: int) -> int:
    """How many whole batches of scenes it gives."""
    return SHARD // batch_size


def draw(seeds: range, vae: MaskVae) -> Scenes:
    """Scenes at the sizes that scene_examples.py gives their seeds."""
    rows = [_row(seed) for seed in seeds]
    crops = np.concatenate([row.pop("crops") for row in rows])
    codes = iter(vae.encode(crops).astype(np.uint8))
    for row in rows:
        row["codes_NO16"] = np.zeros((MOST_OBJECTS, 16), np.uint8)
        for number in np.flatnonzero(row["shape_NO"] >= 0):
            row["codes_NO16"][number] = next(codes)
    return Scenes(**{name: np.stack([row[name] for row in rows]) for name in Scenes._fields})


def _row(seed: int) -> dict[str, Array]:
    size_px = IMAGE_PX * Dice(seed, SIZE_STREAM).choose(SIZES_PERCENT) // 100
    scene = draw_scene(seed, size_px)
    shrunk = Image.fromarray(scene.pixels_YXC).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC)
    facts = patch_facts(scene)
    boxes = [one.box_xyxy_px for one in scene.objects]
    masks = zip(boxes, scene.objects, strict=True)
    return {
        "seed_N": np.array(seed),
        "size_N": np.array(size_px, np.int16),
        "pixels_NYXC": np.asarray(shrunk),
        "shape_NO": _padded([SHAPES.index(one.placed.shape) for one in scene.objects], np.int8, -1),
        "colour_NO": _padded([COLOUR_NAMES.index(one.placed.colour) for one in scene.objects], np.int8, -1),
        "box_NO4": _padded(boxes, np.int16, 0),
        "area_NO": _padded([one.area_px / size_px**2 for one in scene.objects], np.float32, 0),
        "degrees_NO": _padded([one.placed.degrees for one in scene.objects], np.int8, 0),
        "owner_NP": facts.owner_P,
        "anchor_NP": facts.anchor_P,
        "inside_NPC": facts.inside_PC,
        "letters_NPL": facts.letters_PL,
        "word_NL": facts.word_L,
        "text_N": np.array(scene.text or "", "<U8"),
        "crops": np.stack([crop(one.mask_YX[y0:y1, x0:x1]) for (x0, y0, x1, y1), one in masks]),
    }


def _padded(values: object, dtype: type, filler: int) -> Array:
    given = np.asarray(values, dtype)
    out = np.full((MOST_OBJECTS, *given.shape[1:]), filler, dtype)
    out[: len(given)] = given
    return out


def remembered(scenes: Scenes, row: int) -> Scene:
    """A scene that tasks can be asked about. A mask of it is the object's number, for `codes_of` to look up."""
    size_px = int(scenes.size_N[row])
    objects = []
    for number in np.flatnonzero(scenes.shape_NO[row] >= 0):
        shape, colour = SHAPES[scenes.shape_NO[row, number]], COLOUR_NAMES[scenes.colour_NO[row, number]]
        x0, y0, x1, y1 = map(int, scenes.box_NO4[row, number])
        placed = Placed(colour, shape, (0, 0, 0), (0, 0), 0, 0)
        objects.append(SceneObject(placed, (x0, y0, x1, y1), np.broadcast_to(np.int64(number), (size_px, size_px))))
    return Scene(int(scenes.seed_N[row]), np.empty((size_px, 0, 3)), tuple(objects), str(scenes.text_N[row]) or None)
