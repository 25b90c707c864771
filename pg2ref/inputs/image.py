"""Step 2 of 9: interim."""

import os
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from pg2ref.arrays import Array
from pg2ref.errors import InputError

ImageSource: TypeAlias = str | os.PathLike[str] | BinaryIO | Image.Image | Array


def read_image(source: ImageSource) -> Image.Image:
    if isinstance(source, np.ndarray):
        return Image.fromarray(source).convert("RGB")
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    try:
        return ImageOps.exif_transpose(Image.open(source)).convert("RGB")
    except OSError as error:
        raise InputError(f"{source}: {error}") from None


def pixel_values(image: Image.Image, image_size: int, resize: str = "bicubic") -> Array:
    resized = np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    scaled = (resized.astype(np.float64) * (1 / 255)).astype(np.float32)
    return np.ascontiguousarray(((scaled - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1))
