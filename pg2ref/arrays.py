"""The dimension key of the whole project, and bfloat16 as the bit patterns that lie in the files.

A name that ends in capital letters says its axes, one letter an axis, in order: `query_TNH[t, n, h]`.

    T  query tokens in this call      S  key/value tokens visible (cache length)     D  text width, hidden_size
    N  query heads                    K  key/value heads        G  N // K            H  head_dim
    F  MLP width, intermediate_size   V  vocab_size             L  layers            O  output rows of any linear layer
    Y  pixel or grid rows   X  columns   C  channels   I  image tokens = patches, row-major   P  numbers in one patch
    E  vision width         M  vision MLP width        R  rotated pairs, H // 2
    1  a kept length-one axis (query_T1)

In siglip.py N and H are the vision tower's, and T = S = I. B (batch) is deliberately absent: one example is one
call, and sequences that decode together share the T axis. Weights carry the checkpoint's own leaf names without a
suffix, because a weight may be quantised and is then no plain array; their shapes stand in
checkpoint/tensor_table.py, where they are checked.

bfloat16 is the upper half of float32. NumPy has no such type, so a bf16 array is a `uint16` array of bit patterns,
usually a read-only view of the memory-mapped checkpoint; `uint16` means that and nothing else in this project.
"""

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]


def bf16_to_f32(bits: Array) -> Array:
    """Widen bfloat16 bit patterns (`uint16`) to float32: exact, any shape."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: Array) -> Array:
    """Round float32 to the nearest bfloat16, ties to even, and return its bit patterns (`uint16`).

    NaN stays a quiet NaN of the same sign, whatever its payload (rounding alone could turn it into infinity).
    """
    numbers = np.ascontiguousarray(values, dtype=np.float32)
    bits = numbers.view(np.uint32)
    rounded = (bits >> 16) & 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    is_nan = np.isnan(numbers)
    if is_nan.any():
        rounded = np.where(is_nan, (bits >> 16) | 0x40, rounded)
    return rounded.astype(np.uint16)


def widen(weight: Array, dtype: np.dtype[Any]) -> Array:
    """A stored array (bf16 bits, float16, float32 or float64) as `dtype`; no copy where it already is."""
    stored = bf16_to_f32(weight) if weight.dtype == np.uint16 else weight
    return stored.astype(dtype, copy=False)
