"""Rotary position embedding (arXiv:2104.09864) in the half-split form of Gemma.

Number r of the first half of a head turns with number r of the second half, by position * theta ** (-2r / H).
Rotation depends on differences of positions alone, so where counting starts is a convention; it is 1 here, as in
Transformers, so that rotated queries and keys agree with theirs stage by stage.
"""

from typing import Any

import numpy as np

from pg2ref.arrays import Array

FIRST_POSITION = 1


def rotation_table(positions_T: Array, head_dim: int, theta: float, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """`cos_TR` and `sin_TR` of every position.

    The angles are computed in float64 and rounded once: a float32 angle (as in Transformers) is off by up to
    position * 6e-8, a rounding of the library and not of the model.
    """
    frequency_R = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angle_TR = positions_T.astype(np.float64)[:, None] * frequency_R
    return np.cos(angle_TR).astype(dtype), np.sin(angle_TR).astype(dtype)


def rotate(x_TNH: Array, cos_TR: Array, sin_TR: Array) -> Array:
    """Turn every head of every row by its position's angles (Transformers modeling_gemma2.py, rotate_half)."""
    R = cos_TR.shape[1]
    first_TNR, second_TNR = x_TNH[..., :R].astype(np.float64), x_TNH[..., R:].astype(np.float64)
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
    rotated = [first_TNR * cos_T1R - second_TNR * sin_T1R, second_TNR * cos_T1R + first_TNR * sin_T1R]
    return np.concatenate(rotated, axis=-1).astype(x_TNH.dtype)
