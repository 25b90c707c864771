"""Masks of objects as the mask VAE sees them: the box of each stretched to 64 x 64, -1 outside the object, 1 inside.

Stretched as big_vision does for its training targets (pp/proj/paligemma/segmentation.py): bilinear, with antialiasing.
"""

from collections.abc import Iterator
from itertools import count, islice
from typing import TypeAlias

import numpy as np
from PIL import Image

from pg2ref.arrays import Array
from pg2ref.demo.scene import draw_scene
from pg2ref.model.vqvae import MASK_PX

Position: TypeAlias = tuple[int, int]  # a seed, and how many masks of its scene have been used


def crop(mask_YX: Array) -> Array:
    """The mask inside an object's box as float32 [64, 64] in [-1, 1]."""
    stretched = Image.fromarray(mask_YX.astype(np.uint8) * 255).resize((MASK_PX, MASK_PX), Image.Resampling.BILINEAR)
    return np.asarray(stretched, np.float32) / 127.5 - 1


def scene_masks(seed: int, size_px: int) -> list[Array]:
    """The masks inside the boxes of a scene's objects, bool, each of its own size."""
    masks = []
    for one in draw_scene(seed, size_px).objects:
        x0, y0, x1, y1 = one.box_xyxy_px
        masks.append(one.mask_YX[y0:y1, x0:x1])
    return masks


def batches(position: Position, size_px: int, batch_size: int) -> Iterator[tuple[Position, Array]]:
    """Endless batches of crops [batch, 64, 64], each with the position behind it, to go on from."""
    masks = _masks_from(position, size_px)
    while True:
        chosen = list(islice(masks, batch_size))
        yield chosen[-1][0], np.stack([crop(mask_YX) for _, mask_YX in chosen])


def _masks_from(position: Position, size_px: int) -> Iterator[tuple[Position, Array]]:
    first_seed, skipped = position
    for seed in count(first_seed):
        for i, mask_YX in enumerate(scene_masks(seed, size_px)):
            if seed > first_seed or i >= skipped:
                yield (seed, i + 1), mask_YX
