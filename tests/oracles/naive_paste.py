"""How big_vision's evaluator puts a mask into a picture, pixel by pixel with Pillow's bilinear weights in float64."""

import math

import numpy as np

Array = np.ndarray


def paste(mask: Array, y0: int, x0: int, y1: int, x1: int, width: int, height: int) -> Array:
    """Bins of 1023 to whole pixels by cutting; above 0 is the object."""
    top, bottom = int(y0 / 1023 * height), int(y1 / 1023 * height)
    left, right = int(x0 / 1023 * width), int(x1 / 1023 * width)
    whole = np.zeros((height, width), bool)
    if top < bottom and left < right:
        down, across = _weights(bottom - top), _weights(right - left)
        whole[top:bottom, left:right] = down @ mask.astype(np.float64) @ across.T > 0
    return whole


def _weights(size: int) -> Array:
    """Row r: what each of 64 inputs gives to output r, by a triangle around its centre that widens on shrinking."""
    rows = np.zeros((size, 64))
    scale = 64 / size
    reach = max(scale, 1.0)
    for r in range(size):
        centre = (r + 0.5) * scale
        for i in range(max(math.floor(centre - reach + 0.5), 0), min(math.floor(centre + reach + 0.5), 64)):
            rows[r, i] = max(1 - abs((i + 0.5 - centre) / reach), 0)
        rows[r] /= rows[r].sum()
    return rows
