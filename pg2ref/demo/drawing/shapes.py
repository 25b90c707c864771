"""The shapes of scenes as polygons of whole numbers.

A scene is laid out on a square of `SIDE` units, whatever its size in pixels; a shape's own outline lies in a circle of
`REACH` around (0, 0), y downwards. Sines and cosines are rounded to whole numbers: none lies so near to a half that
the last bit of a mathematical library could matter, which a test checks.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from pg2ref.arrays import Array
from pg2ref.demo.drawing.raster import FINE, SAMPLES

SIDE = 4096
REACH = 1024
TURN = 1 << 14  # what stands for 1 in sines and cosines

Points = Sequence[tuple[int, int]]


def cosine(degrees: int) -> int:
    """`TURN` times the cosine, rounded."""
    return round(TURN * math.cos(math.radians(degrees % 360)))


def sine(degrees: int) -> int:
    """`TURN` times the sine, rounded."""
    return cosine(degrees - 90)


def _on_circle(radius: int, degrees: int) -> tuple[int, int]:
    return radius * cosine(degrees) // TURN, radius * sine(degrees) // TURN


def _polygon(corners: int, radius: int = REACH, first_degrees: int = -90) -> Points:
    return [_on_circle(radius, first_degrees + 360 * corner // corners) for corner in range(corners)]


def _star() -> Points:
    return [_on_circle(REACH if corner % 2 == 0 else 430, -90 + 36 * corner) for corner in range(10)]


def _cross() -> Points:
    arm, tip = 300, 960
    quarter = [(arm, -tip), (arm, -arm), (tip, -arm)]
    turned = [(-y, x) for x, y in quarter]
    return [*quarter, *turned, *((-x, -y) for x, y in quarter), *((-x, -y) for x, y in turned)]


def _heart() -> Points:
    """Two arcs that meet at the dent, and two straight sides that touch them and meet at the tip."""
    radius, centre_x, centre_y = 500, 440, -300
    right = [(x + centre_x, y + centre_y) for x, y in (_on_circle(radius, d) for d in range(-150, 41, 10))]
    return [*right, (0, 960), *((-x, y) for x, y in reversed(right))]


OUTLINES: dict[str, tuple[Points, ...]] = {
    "circle": (_polygon(60, 880),),
    "square": (_polygon(4, 1090, -45),),
    "triangle": ([(x, y + 130) for x, y in _polygon(3, 1040)],),
    "star": (_star(),),
    "cross": (_cross(),),
    "heart": (_heart(),),
    "diamond": ([(0, -1060), (680, 0), (0, 1060), (-680, 0)],),
    "ring": (_polygon(60, 900), _polygon(48, 480)),
}
SHAPES = tuple(OUTLINES)


@cache
def _outline(shape: str) -> tuple[Array, ...]:
    return tuple(np.array(contour, np.int64) for contour in OUTLINES[shape])


def place(shape: str, centre: tuple[int, int], radius: int, degrees: int, size_px: int) -> list[Array]:
    """The contours of a shape in a scene, in the units of raster.py.

    Args:
        shape: one of `SHAPES`.
        centre: x, y in units of the scene.
        radius: in units of the scene, what `REACH` stands for.
        degrees: turned clockwise.
        size_px: side of the picture.
    """
    c, s = cosine(degrees), sine(degrees)
    turn = np.array([[c, s], [-s, c]])
    offset = np.array(centre) * REACH * TURN
    scale = size_px * SAMPLES * FINE
    return [(contour @ turn * radius + offset) * scale // (SIDE * REACH * TURN) for contour in _outline(shape)]
