"""A stored matrix and what adapters add to it, side by side.

    W' = gain * W + up.T @ down        row o of W times gain_O[o]; up (R, O), down (R, D)

LoRA (arXiv:2106.09685) adds the product of two thin matrices. DoRA (arXiv:2402.09353) also scales the rows. Any number
of adapters is one such pair: their thin matrices stand side by side, and R is the sum of their ranks. W lies where it
lay, in the mapped file, quantised or not; a product with W' is one with W and two thin ones.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from pg2ref.arrays import Array
from pg2ref.quantized import Weight, pick_rows, widen_rows


class AdaptedMatrix(NamedTuple):
    """W' in its parts, the thin ones in float32. A type of its own: `linear` picks by it."""

    base: Weight  # (O, D), as stored
    down_RD: Array
    up_RO: Array
    gain_O: Array | None  # None: 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(O, D)."""
        return self.base.shape

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        gain_bytes = 0 if self.gain_O is None else self.gain_O.nbytes
        return int(self.base.nbytes + self.down_RD.nbytes + self.up_RO.nbytes + gain_bytes)

    @property
    def size(self) -> int:
        """Numbers that a product multiplies with."""
        return int(self.base.size + self.down_RD.size + self.up_RO.size)


LinearWeight: TypeAlias = Weight | AdaptedMatrix


def embedding_rows(weight: LinearWeight, ids_T: Array, dtype: np.dtype[Any]) -> Array:
    """Row `ids_T[t]` for each t, `rows_TD`: how an embedding is read. Other rows are not touched."""
    if not isinstance(weight, AdaptedMatrix):
        return pick_rows(weight, ids_T, dtype)
    gain_T = None if weight.gain_O is None else weight.gain_O[ids_T]
    return _add(pick_rows(weight.base, ids_T, dtype), gain_T, weight.up_RO[:, ids_T], weight.down_RD)


def adapted_rows(weight: LinearWeight, dtype: np.dtype[Any], start: int, stop: int) -> Array:
    """Rows `start` to `stop` as one matrix: what a merge writes."""
    if not isinstance(weight, AdaptedMatrix):
        return widen_rows(weight, dtype, start, stop)
    gain = None if weight.gain_O is None else weight.gain_O[start:stop]
    return _add(widen_rows(weight.base, dtype, start, stop), gain, weight.up_RO[:, start:stop], weight.down_RD)


def _add(rows_OD: Array, gain_O: Array | None, up_RO: Array, down_RD: Array) -> Array:
    if gain_O is not None:
        rows_OD = rows_OD * gain_O.astype(rows_OD.dtype)[:, None]
    return rows_OD + up_RO.T.astype(rows_OD.dtype) @ down_RD.astype(rows_OD.dtype)
