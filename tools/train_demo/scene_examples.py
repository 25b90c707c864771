"""Scenes as the model reads them, with their questions: what training and judging draw from.

The pixels go through pg2ref's own preprocessing. A scene is drawn at the model's size or larger and then shrunk, as a
visitor's picture is: a model that has only seen scenes of its own size would never have met a resized edge.
"""

from typing import NamedTuple

from PIL import Image
from seeds import SIZE_STREAM, TASK_STREAM

from pg2ref.arrays import Array
from pg2ref.demo.drawing.dice import Dice
from pg2ref.demo.scene import Scene, draw_scene
from pg2ref.demo.tasks import MaskEncoder, Task, draw_tasks
from pg2ref.inputs.image import pixel_values

SIZES_PERCENT = (100, 200, 200, 200, 150, 400)  # of the model's; 224 px is what `pg2ref scene` draws


class Example(NamedTuple):
    """One scene and one task of each kind."""

    pixel_values_CYX: Array
    scene: Scene  # at the size it was drawn in
    tasks: list[Task]


def example(seed: int, image_size: int, encode: MaskEncoder | None = None) -> Example:
    """The scene of a seed for a model of `image_size` px, and its questions; `encode` as in `draw_tasks`."""
    size_px = image_size * Dice(seed, SIZE_STREAM).choose(SIZES_PERCENT) // 100
    scene = draw_scene(seed, size_px)
    pixels_CYX = pixel_values(Image.fromarray(scene.pixels_YXC), image_size)
    return Example(pixels_CYX, scene, draw_tasks(scene, Dice(seed, TASK_STREAM), encode))
