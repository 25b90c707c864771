"""Polygons to pixels with whole numbers: each pixel counts which of its 4 x 4 sample points lie inside.

Points are in 1/256 of a sample, a quarter pixel, so products of coordinates stay far below 2**63.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array

SAMPLES = 4  # a side of a pixel
FINE = 256  # steps from one sample to the next
FULL = SAMPLES * SAMPLES


class Stamp(NamedTuple):
    """How much of each pixel a figure covers, 0 to `FULL`, in the box of the picture that holds it."""

    top: int
    left: int
    coverage_YX: Array  # uint8; empty where the figure lies outside the picture

    @property
    def box(self) -> tuple[slice, slice]:
        """Its place in the picture."""
        height, width = self.coverage_YX.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def fill(contours: Sequence[Array], size_px: int) -> Stamp:
    """The figure between contours [point, (x, y)], by the even-odd rule, cut at the edges of a square picture."""
    points, step = np.concatenate(contours), SAMPLES * FINE
    low, high = points.min(0) // step, points.max(0) // step + 1
    left, top, right, bottom = (int(edge) for edge in np.clip([*low, *high], 0, size_px))
    if left >= right or top >= bottom:
        return Stamp(0, 0, np.zeros((0, 0), np.uint8))
    height, width = bottom - top, right - left
    corner = np.array([left, top]) * step
    ends = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    row, column = _crossings(points - corner, ends - corner, SAMPLES * height)
    columns = SAMPLES * width
    flips = np.bincount(row * (columns + 1) + column.clip(0, columns), minlength=SAMPLES * height * (columns + 1))
    inside_YX = np.cumsum(flips.reshape(-1, columns + 1)[:, :-1], axis=1, dtype=np.uint8) & 1
    by_row = inside_YX.reshape(height, SAMPLES, columns).sum(1, dtype=np.uint8)
    return Stamp(top, left, by_row.reshape(height, width, SAMPLES).sum(2, dtype=np.uint8))


def _crossings(starts: Array, ends: Array, rows: int) -> tuple[Array, Array]:
    """Where edges cross the rows of samples: the row, and the first sample of it that lies right of the edge."""
    height = np.arange(rows) * FINE + FINE // 2
    edge, row = np.nonzero((starts[:, 1, None] <= height) != (ends[:, 1, None] <= height))
    (x, y), (run, rise) = starts[edge].T, (ends - starts)[edge].T
    crossing = x - (y - height[row]) * run // rise  # rounded up
    return row, (crossing + FINE // 2 - 1) // FINE
