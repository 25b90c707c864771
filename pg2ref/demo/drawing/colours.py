"""Colours by name, and grounds on which they stand out."""

from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.demo.drawing.dice import Dice
from pg2ref.demo.drawing.shapes import TURN, cosine, sine

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 36, 40),
    "orange": (244, 134, 28),
    "yellow": (246, 218, 44),
    "green": (44, 154, 66),
    "blue": (38, 84, 212),
    "purple": (136, 48, 178),
    "black": (22, 22, 24),
    "white": (248, 248, 246),
}
COLOUR_SPREAD = 12  # how far a painted colour may lie from its name's, in each channel
GREY_LEVELS = ((46, 84), (104, 150), (184, 226))  # dark, middle and light grounds
TINT = 16  # how far a ground's channels lie from grey
NOISE = (10, 40)  # from the lowest to the highest level that noise adds
LEAST_CONTRAST = 150  # sum over the channels


class Ground(NamedTuple):
    """What lies behind everything: one colour, or two that fade into each other, and noise."""

    start: Colour
    end: Colour
    degrees: int  # of the direction from start to end
    noise: int  # from the lowest to the highest level; 0 for none


def draw_ground(dice: Dice) -> Ground:
    """Plain, fading or noisy, each in a third of the cases."""
    kind = dice.choose(("plain", "fading", "noisy"))
    level = dice.choose(GREY_LEVELS)
    start = _tint(dice, level)
    end = _tint(dice, level) if kind == "fading" else start
    noise = dice.between(*NOISE) if kind == "noisy" else 0
    return Ground(start, end, dice.below(360), noise)


def _tint(dice: Dice, level: tuple[int, int]) -> Colour:
    grey = dice.between(*level)
    red, green, blue = (grey + dice.between(-TINT, TINT) for _ in range(3))
    return red, green, blue


def stands_out(name: str, ground: Ground) -> bool:
    """Whether nobody could overlook a figure of this colour on that ground."""
    return all(
        sum(abs(a - b) for a, b in zip(COLOURS[name], colour, strict=True)) >= LEAST_CONTRAST
        for colour in (ground.start, ground.end)
    )


def vary(name: str, dice: Dice) -> Colour:
    """A colour near the one of that name."""
    red, green, blue = (min(max(c + dice.between(-COLOUR_SPREAD, COLOUR_SPREAD), 0), 255) for c in COLOURS[name])
    return red, green, blue


def paint_ground(ground: Ground, size_px: int, dice: Dice) -> Array:
    """The ground as `pixels_YXC`, int16 so that it can be painted on; the noise is another at another size."""
    if ground.start == ground.end:
        pixels_YXC = np.empty((size_px, size_px, 3), np.int16)
        pixels_YXC[:] = ground.start
    else:
        along = np.arange(size_px) * 2 + 1 - size_px  # from the middle, in half pixels
        position_YX = along * cosine(ground.degrees) + along[:, None] * sine(ground.degrees)
        share_YX = position_YX // size_px + 2 * TURN  # of 4 * TURN; a diagonal reaches 1.42 from the middle
        fade = np.array(ground.end) - ground.start
        pixels_YXC = (share_YX[:, :, None] * fade // (4 * TURN) + ground.start).astype(np.int16)
    if ground.noise:
        noise = dice.bytes_(size_px * size_px).reshape(size_px, size_px, 1).astype(np.int16)
        pixels_YXC += noise * ground.noise // 256 - ground.noise // 2
    return pixels_YXC.clip(0, 255)
