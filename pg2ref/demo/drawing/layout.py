"""What stands where in a scene: everything is decided here, in units that no pixel size enters."""

import math
from typing import NamedTuple

from pg2ref.demo.drawing.colours import COLOURS, Colour, Ground, draw_ground, stands_out, vary
from pg2ref.demo.drawing.dice import Dice
from pg2ref.demo.drawing.lettering import text_width
from pg2ref.demo.drawing.shapes import SHAPES, SIDE, TURN, cosine, sine
from pg2ref.demo.drawing.words import LARGEST_NUMBER, WORDS

NUMBERS_OF_OBJECTS = (1, 2, 2, 3, 3, 4)
RADIUS = (SIDE * 76 // 1000, SIDE * 170 // 1000)
TILT_DEGREES = 15
MARGIN = SIDE // 64
APART_PERCENT = 115  # of the sum of two radii, the least distance of two centres
OVERLAPPING_PERCENT = (64, 80)  # likewise in scenes whose objects overlap, where two differ in colour
TEXT_HEIGHT = (SIDE * 8 // 100, SIDE * 13 // 100)
TRIES = 60


class Placed(NamedTuple):
    """One object; lengths in units of the scene (`shapes.SIDE`)."""

    colour: str
    shape: str
    painted: Colour
    centre: tuple[int, int]
    radius: int
    degrees: int  # turned clockwise


class Lettering(NamedTuple):
    """A word or a number; lengths in units of the scene."""

    text: str
    painted: Colour
    corner: tuple[int, int]  # top left
    height: int
    width: int


class Layout(NamedTuple):
    """A scene before it is painted; each object lies over the ones before it."""

    ground: Ground
    objects: tuple[Placed, ...]
    lettering: Lettering | None


def lay_out(dice: Dice) -> Layout:
    """A scene of one to four objects, large ones below small ones, and in two of five a word beside them."""
    ground = draw_ground(dice)
    lettering = _lettering(dice, ground) if dice.percent(40) else None
    overlapping = dice.percent(20)
    placed: list[Placed] = []
    for colour, shape in _kinds(dice, ground):
        found = _place(dice, colour, placed, lettering, overlapping)
        if found is not None:
            centre, radius = found
            tilt = dice.between(-TILT_DEGREES, TILT_DEGREES)
            placed.append(Placed(colour, shape, vary(colour, dice), centre, radius, tilt))
    return Layout(ground, tuple(sorted(placed, key=lambda one: -one.radius)), lettering)


def _kinds(dice: Dice, ground: Ground) -> list[tuple[str, str]]:
    """Colours and shapes of the objects: often several of a kind, or of a colour, or of a shape."""
    colours = [name for name in COLOURS if stands_out(name, ground)]
    count = dice.choose(NUMBERS_OF_OBJECTS)
    kinds = [(dice.choose(colours), dice.choose(SHAPES))]
    all_alike = dice.percent(15)
    while len(kinds) < count:
        colour, shape = dice.choose(kinds)
        likeness = 0 if all_alike else dice.below(100)
        if likeness >= 25:
            keeps_colour, keeps_shape = likeness < 40, 40 <= likeness < 55
            colour = colour if keeps_colour else dice.choose(colours)
            shape = shape if keeps_shape else dice.choose(SHAPES)
        kinds.append((colour, shape))
    return dice.shuffled(kinds)


def _lettering(dice: Dice, ground: Ground) -> Lettering:
    text = str(dice.between(0, LARGEST_NUMBER)) if dice.percent(30) else dice.choose(WORDS)
    colour = dice.choose([name for name in COLOURS if stands_out(name, ground)])
    height = dice.between(*TEXT_HEIGHT)
    width = text_width(text, height)
    corner = dice.between(MARGIN, SIDE - MARGIN - width), dice.between(MARGIN, SIDE - MARGIN - height)
    return Lettering(text, vary(colour, dice), corner, height, width)


def _place(
    dice: Dice, colour: str, others: list[Placed], lettering: Lettering | None, overlapping: bool
) -> tuple[tuple[int, int], int] | None:
    """A centre and a radius that leave the others room; None where none was found."""
    unlike = [other for other in others if other.colour != colour] if overlapping else []
    for _ in range(TRIES):
        radius = dice.between(*RADIUS)
        least, most = radius + MARGIN, SIDE - radius - MARGIN
        if unlike:
            x, y = _near(dice, dice.choose(unlike), radius)
        else:
            x, y = dice.between(least, most), dice.between(least, most)
        free = all(
            math.isqrt((x - other.centre[0]) ** 2 + (y - other.centre[1]) ** 2) * 100
            >= (OVERLAPPING_PERCENT[0] if other in unlike else APART_PERCENT) * (radius + other.radius)
            for other in others
        )
        inside = least <= min(x, y) and max(x, y) <= most
        if free and inside and (lettering is None or _beside(x, y, radius, lettering)):
            return (x, y), radius
    return None


def _near(dice: Dice, other: Placed, radius: int) -> tuple[int, int]:
    """A centre from which a circle reaches into another."""
    distance = (radius + other.radius) * dice.between(*OVERLAPPING_PERCENT) // 100
    degrees = dice.below(360)
    return other.centre[0] + distance * cosine(degrees) // TURN, other.centre[1] + distance * sine(degrees) // TURN


def _beside(x: int, y: int, radius: int, lettering: Lettering) -> bool:
    """Whether a circle leaves a word alone."""
    left, top = lettering.corner
    across = max(left - x, 0, x - left - lettering.width)
    down = max(top - y, 0, y - top - lettering.height)
    return across * across + down * down > (radius + MARGIN) ** 2
