"""Words in scenes: DejaVu Sans Bold's capitals and digits as polygons (`pg2ref/fonts/`, tools/make_font.py)."""

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.demo.drawing.raster import FINE, SAMPLES
from pg2ref.demo.drawing.shapes import SIDE


class Font(NamedTuple):
    """Height of the capitals, and of each letter how far the next one begins and its contours, in font units."""

    height: int
    advance: dict[str, int]
    contours: dict[str, tuple[Array, ...]]


@cache
def font() -> Font:
    """The packaged outlines."""
    stored = json.loads((files("pg2ref") / "fonts" / "outlines.json").read_text(encoding="utf-8"))
    letters = stored["letters"]
    return Font(
        height=stored["height"],
        advance={letter: parts["advance"] for letter, parts in letters.items()},
        contours={
            letter: tuple(np.array(contour, np.int64) for contour in parts["contours"])
            for letter, parts in letters.items()
        },
    )


def text_width(text: str, height: int) -> int:
    """Width of a word whose capitals are `height` tall, in the same units."""
    return sum(font().advance[letter] for letter in text) * height // font().height


def place_text(text: str, corner: tuple[int, int], height: int, size_px: int) -> list[Array]:
    """The contours of a word in a scene, in the units of raster.py; `corner` is its top left, in units of the scene."""
    shapes, scale = font(), size_px * SAMPLES * FINE
    offset = np.array(corner) * shapes.height
    contours, begun = [], 0
    for letter in text:
        for contour in shapes.contours[letter]:
            contours.append(((contour + np.array([begun, 0])) * height + offset) * scale // (SIDE * shapes.height))
        begun += shapes.advance[letter]
    return contours
