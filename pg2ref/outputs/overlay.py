"""Draws objects on their picture: masks, boxes, and labels that can be read on any ground.

Objects of one label have one colour. A box is a coloured line between two dark ones; a label stands on
a plate of its colour, in black or white, whichever differs more. Nothing is drawn outside the picture, and
plates keep clear of one another where there is room. The font holds Latin, Greek and Cyrillic letters; letters of
other scripts come out as empty boxes.
"""

import io
import zlib
from bisect import bisect
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pg2ref.arrays import Array
from pg2ref.outputs.objects import DetectedObject

COLOURS = (
    (230, 60, 60),
    (60, 120, 230),
    (40, 170, 80),
    (250, 160, 30),
    (160, 80, 210),
    (20, 190, 200),
    (240, 100, 180),
    (150, 200, 40),
    (170, 110, 60),
    (250, 220, 60),
)
EDGE = (15, 15, 15)
MASK_PERCENT = 45
SMALLEST_TEXT_PX, LARGEST_TEXT_PX = 9, 48
ELLIPSIS = "…"

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, the ends outside


def draw_overlay(picture: Image.Image, objects: Sequence[DetectedObject]) -> Image.Image:
    """A copy of an RGB picture with the objects on it; large ones are drawn first."""
    drawn = picture.copy()
    colours = label_colours([one.label for one in objects])
    ordered = sorted(objects, key=lambda one: -_area(one.box_xyxy_px))
    for one in ordered:
        if one.mask_YX is not None:
            _blend(drawn, one.mask_YX, colours[one.label])
    for one in ordered:
        _outline(drawn, pixel_box(one.box_xyxy_px, picture.size), colours[one.label])
    plates: list[Box] = []
    for one in ordered:
        words = one.label if one.score is None else f"{one.label} {one.score:.2f}".strip()
        plate = _label(drawn, pixel_box(one.box_xyxy_px, picture.size), words, colours[one.label], plates)
        plates += [plate] if plate else []
    return drawn


def label_colours(labels: Sequence[str]) -> dict[str, Colour]:
    """A colour for each label: its own in every picture, unless another label of this one has it already."""
    chosen: dict[str, Colour] = {}
    for label in dict.fromkeys(labels):
        first = zlib.crc32(label.encode("utf-8", "replace"))
        turns = [COLOURS[(first + turn) % len(COLOURS)] for turn in range(len(COLOURS))]
        chosen[label] = next((colour for colour in turns if colour not in chosen.values()), turns[0])
    return chosen


def pixel_box(box_xyxy_px: Sequence[float], size: tuple[int, int]) -> Box:
    """The pixels that a box touches: at least one, all inside the picture."""
    width, height = size
    x0, y0 = min(int(box_xyxy_px[0]), width - 1), min(int(box_xyxy_px[1]), height - 1)
    x1, y1 = (int(-(-edge // 1)) for edge in box_xyxy_px[2:])
    return x0, y0, min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)


def _area(box_xyxy_px: Sequence[float]) -> float:
    x0, y0, x1, y1 = box_xyxy_px
    return (x1 - x0) * (y1 - y0)


def _blend(drawn: Image.Image, mask_YX: Array, colour: Colour) -> None:
    """Tint what the mask covers, and draw its rim in full colour."""
    pixels_YXC = np.array(drawn)
    tinted = pixels_YXC[mask_YX].astype(np.uint16) * (100 - MASK_PERCENT) + np.array(colour, np.uint16) * MASK_PERCENT
    pixels_YXC[mask_YX] = (tinted // 100).astype(np.uint8)
    framed_YX = np.pad(mask_YX, 1)
    inside_YX = framed_YX[:-2, 1:-1] & framed_YX[2:, 1:-1] & framed_YX[1:-1, :-2] & framed_YX[1:-1, 2:]
    pixels_YXC[mask_YX & ~inside_YX] = colour
    drawn.paste(Image.fromarray(pixels_YXC))


def _outline(drawn: Image.Image, box: Box, colour: Colour) -> None:
    """The lines grow inwards, so that they stay in the picture; in a tiny box only the colour has room."""
    draw = ImageDraw.Draw(drawn)
    x0, y0, x1, y1 = box
    line = max(1, round(min(drawn.size) / 200))
    rims = [EDGE] * max(1, line // 2) + [colour] * line + [EDGE] * max(1, line // 2)
    if min(x1 - x0, y1 - y0) <= 2 * len(rims):
        rims = [colour]
    for inset, rim in enumerate(rims):
        is_line = y1 - y0 == 1  # whose outline Pillow draws 2 px high
        edges = x0 + inset, y0 + inset, x1 - 1 - inset, y1 - 1 - inset
        draw.rectangle(edges, outline=rim, fill=rim if is_line else None, width=0 if is_line else 1)


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    stored = (files("pg2ref") / "fonts" / "DejaVuSans-Bold-subset.ttf").read_bytes()
    return ImageFont.truetype(io.BytesIO(stored), size_px, layout_engine=ImageFont.Layout.BASIC)


def _label(drawn: Image.Image, box: Box, words: str, colour: Colour, plates: Sequence[Box]) -> Box | None:
    """Write the label on a plate, and return where it lies; None where there is nothing to write, or no room."""
    width, height = drawn.size
    font = _font(min(max(min(width, height) // 28, SMALLEST_TEXT_PX), LARGEST_TEXT_PX))
    ascent, descent = font.getmetrics()
    margin = max(2, ascent // 5)
    text = _shortened(" ".join(words.split()), font, width - 2 * margin)
    plate_width, plate_height = round(font.getlength(text)) + 2 * margin, ascent + descent
    if not text or plate_height > height:
        return None
    plate = _free_place(box, (plate_width, plate_height), drawn.size, plates)
    red, green, blue = colour
    ink = "black" if 299 * red + 587 * green + 114 * blue > 140_000 else "white"
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=colour)
    draw.text((plate[0] + margin, plate[1]), text, fill=ink, font=font)
    return plate


def _shortened(text: str, font: ImageFont.FreeTypeFont, most_px: int) -> str:
    """As much of the text as fits, ending in dots where it is cut."""
    text = text[: max(most_px, 0)]  # no letter is thinner than a pixel
    if font.getlength(text) <= most_px:
        return text
    kept = bisect(range(1, len(text)), float(most_px), key=lambda count: font.getlength(text[:count] + ELLIPSIS))
    return text[:kept] + ELLIPSIS if kept else ""


def _free_place(box: Box, plate_size: tuple[int, int], size: tuple[int, int], plates: Sequence[Box]) -> Box:
    """Over the box, else under it, else at its inner corners: the first that no plate covers, else the first."""
    (x0, y0, x1, y1), (plate_width, plate_height) = box, plate_size
    corners = [
        (x0, y0 - plate_height),
        (x0, y1),
        (x0, y0),
        (x1 - plate_width, y1 - plate_height),
        (x1 - plate_width, y0 - plate_height),
        (x1, y0),
        (x0 - plate_width, y0),
    ]
    inside = [
        (left, top, left + plate_width, top + plate_height)
        for left, top in corners
        if top >= 0 and top + plate_height <= size[1]
    ] or [(x0, 0, x0 + plate_width, plate_height)]
    places = [_moved_inside(place, size[0]) for place in inside]
    return next((place for place in places if not any(_overlap(place, other) for other in plates)), places[0])


def _moved_inside(place: Box, width: int) -> Box:
    left = max(0, min(place[0], width - (place[2] - place[0])))
    return left, place[1], left + place[2] - place[0], place[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
