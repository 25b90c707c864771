"""The mask decoder: 16 codes -> a mask of 64 x 64 numbers, by the decoder half of a VQ-VAE.

    codes_J -> codebook rows -> 4 x 4 -> two residual blocks -> 8 -> 16 -> 32 -> 64

PaliGemma was trained on the codes of one such network, which big_vision publishes as vae-oid.npz
(pp/proj/paligemma/segmentation.py); the widths are those of the weights. Above 0 is the object, below is not, and
nothing is clipped. This runs once for each object, in a few milliseconds: plain NumPy is enough.
"""

from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.errors import ShapeError

NUM_CODES = 16
GRID = 4  # the codes lie row by row on a square
MASK_PX = 64


class Convolution(NamedTuple):
    """Weights of a convolution (out, in, height, width), or of a transposed one (in, out, height, width)."""

    weight: Array
    bias: Array


class ResidualBlock(NamedTuple):
    """x + third(relu(second(relu(first(x)))))."""

    first: Convolution
    second: Convolution
    third: Convolution


class MaskDecoder(NamedTuple):
    """All weights; `upsample` are transposed convolutions, each of which doubles height and width."""

    codebook: Array  # (codes, width)
    project: Convolution
    blocks: tuple[ResidualBlock, ...]
    upsample: tuple[Convolution, ...]
    to_mask: Convolution


def decode_codes(params: MaskDecoder, codes_J: Array) -> Array:
    """The mask `mask_YX`, 64 x 64, of 16 codes.

    Raises ShapeError for another number of codes, or one outside the codebook.
    """
    if codes_J.shape != (NUM_CODES,) or codes_J.min() < 0 or codes_J.max() >= len(params.codebook):
        raise ShapeError(f"expected {NUM_CODES} codes from 0 to {len(params.codebook) - 1}, got {codes_J.tolist()}")
    hidden_YXC = params.codebook[codes_J].reshape(GRID, GRID, -1)
    hidden_YXC = _relu(convolve(hidden_YXC, params.project))
    for block in params.blocks:
        inner_YXC = _relu(convolve(hidden_YXC, block.first))
        inner_YXC = _relu(convolve(inner_YXC, block.second))
        hidden_YXC = hidden_YXC + convolve(inner_YXC, block.third)
    for convolution in params.upsample:
        hidden_YXC = _relu(convolve_transposed(hidden_YXC, convolution))
    return convolve(hidden_YXC, params.to_mask)[:, :, 0]


def convolve(map_YXC: Array, convolution: Convolution) -> Array:
    """A convolution of odd size and stride 1 whose output is as large as its input: zeros lie around."""
    weight, bias = convolution
    size = weight.shape[-1]
    height, width = map_YXC.shape[:2]
    padded_YXC = np.pad(map_YXC, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    total_YXC = np.broadcast_to(bias, (height, width, len(bias)))
    for y in range(size):
        for x in range(size):
            total_YXC = total_YXC + padded_YXC[y : y + height, x : x + width] @ weight[:, :, y, x].T
    return total_YXC


def convolve_transposed(map_YXC: Array, convolution: Convolution) -> Array:
    """A transposed convolution of size 4, stride 2 and padding 1: twice as high and wide.

    Every input pixel paints a patch of 4 x 4, the next one 2 px further; a rim of 1 px is cut off.
    """
    weight, bias = convolution
    height, width = map_YXC.shape[:2]
    canvas_YXC = np.zeros((2 * height + 2, 2 * width + 2, len(bias)), map_YXC.dtype)
    for y in range(4):
        for x in range(4):
            canvas_YXC[y : y + 2 * height : 2, x : x + 2 * width : 2] += map_YXC @ weight[:, :, y, x]
    return canvas_YXC[1:-1, 1:-1] + bias


def _relu(map_YXC: Array) -> Array:
    return np.maximum(map_YXC, 0)
