"""Masks as COCO's compressed run lengths, which pycocotools, supervision and the COCO tools read.

A mask is read column by column, from the top left downwards; `counts` are the lengths of its runs, the first one of
background, possibly 0. From the fourth on, a count is stored as the difference to the one two before it. Each number is
written as a character for every 5 bits, the lowest first: 48 plus the 5 bits, plus 32 where more follow; the highest
of the last 5 is the sign (cocoapi common/maskApi.c, `rleToString`).
"""

from typing import Any

import numpy as np

from pg2ref.arrays import Array
from pg2ref.errors import InputError, ShapeError, brief

FIRST_CHARACTER = 48
MORE, SIGN = 0x20, 0x10
MOST_PIXELS = 178_956_970  # of the largest picture that is read (inputs/image.py); COCO's own code counts to 2**31


def encode_mask(mask_YX: Array) -> dict[str, Any]:
    """A bool mask as `{"size": [height, width], "counts": str}`.

    Raises ShapeError for anything but a bool array of two axes.
    """
    if mask_YX.ndim != 2 or mask_YX.dtype != np.bool_:
        raise ShapeError(f"expected a bool mask of shape (height, width), got {mask_YX.dtype} {mask_YX.shape}")
    column_by_column = mask_YX.ravel(order="F")
    changes = np.flatnonzero(column_by_column[1:] != column_by_column[:-1]) + 1
    starts = np.concatenate([[0] if column_by_column[:1].any() else [], [0], changes, [column_by_column.size]])
    counts = np.diff(starts.astype(np.int64)).tolist()
    return {"size": list(mask_YX.shape), "counts": _to_text(counts)}


def decode_mask(rle: dict[str, Any]) -> Array:
    """The bool mask, mask_YX, of `{"size": [height, width], "counts": str}`; at most MOST_PIXELS bytes.

    Raises InputError where it is another object, or the counts are damaged or do not fill the size.
    """
    if not isinstance(rle, dict) or not rle.keys() >= {"size", "counts"}:
        raise InputError(f"run lengths: expected an object with size and counts, got {brief(rle)}")
    size, text = rle["size"], rle["counts"]
    is_size = isinstance(size, list) and len(size) == 2
    if not is_size or not all(type(side) is int and 0 <= side <= MOST_PIXELS for side in size):
        raise InputError(f"run lengths: expected a size of height and width in pixels, got {brief(size)}")
    if not isinstance(text, str):
        raise InputError(f"run lengths: expected counts as text, as COCO compresses them, got {brief(text)}")
    height, width = size
    if height * width > MOST_PIXELS:
        raise InputError(f"run lengths: expected at most {MOST_PIXELS:,} pixels, got {height} x {width}")
    counts = _from_text(text)
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise InputError(
            f"run lengths: expected counts that add up to {height * width}, got {sum(counts)}: another mask's size"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(height, width, order="F")


def _to_text(counts: list[int]) -> str:
    characters = []
    for i, count in enumerate(counts):
        left = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            five = left & 0x1F
            left >>= 5
            more = left != (-1 if five & SIGN else 0)
            characters.append(chr(FIRST_CHARACTER + five + (MORE if more else 0)))
    return "".join(characters)


def _from_text(text: str) -> list[int]:
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - FIRST_CHARACTER
        if not 0 <= bits < 64 or shift > 40:
            raise InputError(f"run lengths: expected characters from 0 to o, got {character!r}: they are damaged")
        number |= (bits & 0x1F) << shift
        shift += 5
        if bits & MORE:
            continue
        if bits & SIGN:
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = shift = 0
    if shift:
        raise InputError("run lengths: the last count is cut off")
    return counts
