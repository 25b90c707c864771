"""What is to be seen in each patch of a scene: the dense targets of the vision tower, and the language model's oracle.

A patch belongs to the object that covers most of it. The one with the middle of an object's box in it, even where
that is a hole, is its anchor: one a object, so that whoever counts anchors counts objects.
"""

from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.demo.drawing.dice import Dice
from pg2ref.demo.drawing.layout import Lettering, lay_out
from pg2ref.demo.drawing.lettering import text_width
from pg2ref.demo.drawing.shapes import SIDE
from pg2ref.demo.scene import LAYOUT_STREAM, Scene

GRID = 8  # patches a side
CELLS = 7  # a side of a patch, for the coarse mask
LEAST_COVER = 0.05  # of a patch, to belong to an object
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SLOTS = 5  # letters of the longest word


class PatchFacts(NamedTuple):
    """P = GRID * GRID patches, row by row."""

    owner_P: Array  # int8: the number of the object, largest first, or -1
    anchor_P: Array  # bool
    inside_PC: Array  # bool, CELLS * CELLS: which part of the patch lies inside objects
    letters_PL: Array  # int8 [P, 2]: the letters at a quarter and at three quarters of the width, 0 none
    word_L: Array  # int8 [SLOTS]: the text, 0 behind its end


def patch_facts(scene: Scene) -> PatchFacts:
    """The facts of a scene whose side is a multiple of GRID * CELLS px."""
    masks_NYX = np.stack([one.mask_YX for one in scene.objects])
    cover_NP = _shrink(masks_NYX, GRID).reshape(len(masks_NYX), -1)
    owner_P = np.where(cover_NP.max(0) >= LEAST_COVER, cover_NP.argmax(0), -1).astype(np.int8)
    anchor_P = _place_anchors(scene, cover_NP, owner_P)
    inside_YX = _shrink(masks_NYX.any(0)[None], GRID * CELLS)[0] >= 0.5
    inside_PC = inside_YX.reshape(GRID, CELLS, GRID, CELLS).swapaxes(1, 2).reshape(GRID * GRID, CELLS * CELLS)
    lettering = lay_out(Dice(scene.seed, LAYOUT_STREAM)).lettering
    letters_PL = _letters(lettering) if lettering else np.zeros((GRID * GRID, 2), np.int8)
    return PatchFacts(owner_P, anchor_P, inside_PC, letters_PL, spell(scene.text))


def spell(text: str | None) -> Array:
    """A text as SLOTS numbers of letters, 0 behind its end."""
    word_L = np.zeros(SLOTS, np.int8)
    for slot, letter in enumerate(text or ""):
        word_L[slot] = 1 + LETTERS.index(letter)
    return word_L


def _shrink(masks_NYX: Array, side: int) -> Array:
    """The share of each of side * side cells that a mask covers."""
    count, size_px, _ = masks_NYX.shape
    return masks_NYX.reshape(count, side, size_px // side, side, size_px // side).mean((2, 4))


def _place_anchors(scene: Scene, cover_NP: Array, owner_P: Array) -> Array:
    """Mark an anchor for each object, largest first, and give it to the object; two never share one."""
    anchor_P = np.zeros(GRID * GRID, bool)
    for number, one in enumerate(scene.objects):
        x0, y0, x1, y1 = one.box_xyxy_px
        patch = (y0 + y1) * GRID // (2 * scene.size_px) * GRID + (x0 + x1) * GRID // (2 * scene.size_px)
        if anchor_P[patch]:
            patch = int(np.where(anchor_P, -1, cover_NP[number]).argmax())
        anchor_P[patch] = True
        owner_P[patch] = number
    return anchor_P


def _letters(lettering: Lettering) -> Array:
    """Which letters stand in each patch, looked up at two places of it where the line of text crosses it."""
    left, top = lettering.corner
    ends = [left + text_width(lettering.text[:end], lettering.height) for end in range(len(lettering.text) + 1)]
    patch = SIDE // GRID
    letters_YXL = np.zeros((GRID, GRID, 2), np.int8)
    middle = top + lettering.height // 2
    for row in range(GRID):
        if top < (row + 1) * patch and top + lettering.height > row * patch:
            crossed = min((row + 1) * patch, top + lettering.height) - max(row * patch, top)
            if crossed * 3 < lettering.height and not row * patch <= middle < (row + 1) * patch:
                continue
            for column in range(GRID):
                for place in range(2):
                    at = column * patch + (2 * place + 1) * patch // 4
                    found = np.searchsorted(ends, at, "right")
                    if 0 < found < len(ends):
                        letters_YXL[row, column, place] = 1 + LETTERS.index(lettering.text[found - 1])
    return letters_YXL.reshape(GRID * GRID, 2)
