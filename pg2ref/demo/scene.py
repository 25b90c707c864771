"""Synthetic scenes, the world of the built-in model: coloured shapes, and sometimes a word, on a quiet ground.

    seed -> layout (drawing/layout.py) -> pixels and what can be seen of each object

A seed gives the same scene at every size, and the same pixels on every platform: all arithmetic is in whole numbers,
and the random numbers are Philox's. Next: truth.py writes a scene down, tasks.py asks about it.
"""

from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.demo.drawing.colours import Colour, paint_ground
from pg2ref.demo.drawing.dice import MOST_SEED, Dice
from pg2ref.demo.drawing.layout import Layout, Placed, lay_out
from pg2ref.demo.drawing.lettering import place_text
from pg2ref.demo.drawing.raster import FULL, Stamp, fill
from pg2ref.demo.drawing.shapes import place
from pg2ref.errors import UsageError

LEAST_SIZE_PX, MOST_SIZE_PX = 32, 4096
LAYOUT_STREAM, NOISE_STREAM = 0, 1


class SceneObject(NamedTuple):
    """One object of a scene, as far as it can be seen."""

    placed: Placed
    box_xyxy_px: tuple[int, int, int, int]  # around the mask; the right and the lower edge are those of its last pixels
    mask_YX: Array  # bool, of the whole picture: pixels it covers at least half, and no other object over it does

    @property
    def label(self) -> str:
        """`red circle`, say."""
        return f"{self.placed.colour} {self.placed.shape}"

    @property
    def area_px(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask_YX))


class Scene(NamedTuple):
    """A picture and what is in it, the largest object first."""

    seed: int
    pixels_YXC: Array  # uint8, square
    objects: tuple[SceneObject, ...]
    text: str | None

    @property
    def size_px(self) -> int:
        """A side of the picture."""
        return len(self.pixels_YXC)


def draw_scene(seed: int, size_px: int = 224) -> Scene:
    """The scene of a seed.

    Args:
        seed: 0 to 2**64 - 1.
        size_px: a side of the picture, 32 to 4096.

    Raises:
        UsageError: another seed or size.
    """
    if not 0 <= seed <= MOST_SEED:
        raise UsageError(f"the seed is {seed}, expected 0 to 2**64 - 1")
    if not LEAST_SIZE_PX <= size_px <= MOST_SIZE_PX:
        raise UsageError(f"the size is {size_px} px, expected {LEAST_SIZE_PX} to {MOST_SIZE_PX}")
    layout = lay_out(Dice(seed, LAYOUT_STREAM))
    pixels_YXC = paint_ground(layout.ground, size_px, Dice(seed, NOISE_STREAM))
    stamps = [fill(place(o.shape, o.centre, o.radius, o.degrees, size_px), size_px) for o in layout.objects]
    for one, stamp in zip(layout.objects, stamps, strict=True):
        _paint(pixels_YXC, stamp, one.painted)
    if layout.lettering is not None:
        word = layout.lettering
        _paint(pixels_YXC, fill(place_text(word.text, word.corner, word.height, size_px), size_px), word.painted)
    return Scene(
        seed=seed,
        pixels_YXC=pixels_YXC.astype(np.uint8),
        objects=_visible(layout, stamps, size_px),
        text=layout.lettering.text if layout.lettering else None,
    )


def _paint(pixels_YXC: Array, stamp: Stamp, colour: Colour) -> None:
    """Lay a colour over the picture in place, as far as it covers each pixel."""
    coverage_YX1 = stamp.coverage_YX[:, :, None].astype(np.int16)
    below_YXC = pixels_YXC[stamp.box]
    below_YXC += (coverage_YX1 * (np.array(colour, np.int16) - below_YXC) + FULL // 2) // FULL


def _visible(layout: Layout, stamps: list[Stamp], size_px: int) -> tuple[SceneObject, ...]:
    hidden_YX = np.zeros((size_px, size_px), bool)
    objects = []
    for placed, stamp in reversed(list(zip(layout.objects, stamps, strict=True))):
        mask_YX = np.zeros((size_px, size_px), bool)
        mask_YX[stamp.box] = stamp.coverage_YX >= FULL // 2
        mask_YX &= ~hidden_YX
        hidden_YX |= mask_YX
        rows, columns = np.flatnonzero(mask_YX.any(1)), np.flatnonzero(mask_YX.any(0))
        box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        objects.append(SceneObject(placed, box, mask_YX))
    return tuple(sorted(objects, key=lambda one: (-one.area_px, one.box_xyxy_px)))
