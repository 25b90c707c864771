"""Which keys each query may read: in this model always one contiguous range, so a mask is two integers a row.

The prefix (images and prompt) reads itself in both directions; a suffix token reads what came before it. A sliding
layer lets a query read `window` keys, itself included. Libraries agree on that, and differ in what the window
does inside the prefix, which matters once there are more tokens than the window (896 px: 4,096 image tokens).
Six tokens, prefix_length 4, window 3:

    transformers       big_vision         keras              gemma_cpp, transformers_4
    x x x x . .        x x x x . .        x x x . . .        x x x x . .
    x x x x . .        x x x x . .        x x x x . .        x x x x . .
    x x x x . .        x x x x . .        x x x x . .        x x x x . .
    x x x x . .        x x x x . .        . x x x . .        . x x x . .
    . . x x x .        x x x x x .        . . x x x .        . . x x x .
    . . . x x x        x x x x x x        . . . x x x        . . . x x x

transformers: 5.23, masking_utils.py (prefix block OR window). big_vision: no window at all (models/ppp/gemma.py).
keras: a band on both sides (keras-hub gemma_attention.py). gemma_cpp: a lower bound only (gemma/attention.cc);
transformers_4: releases 4.4x, the same ranges as gemma.cpp.
"""

from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.errors import UsageError
from pg2ref.policy import WINDOW_POLICIES


class KeyRanges(NamedTuple):
    """Row t reads keys first_key_T[t] to last_key_T[t], both included."""

    first_key_T: Array
    last_key_T: Array

    def allowed_TS(self, num_keys: int) -> Array:
        """The same as a boolean picture: True where the row may read the key."""
        key_S = np.arange(num_keys)
        return (key_S >= self.first_key_T[:, None]) & (key_S <= self.last_key_T[:, None])


def everything(num_rows: int, num_keys: int) -> KeyRanges:
    """Every row reads every key: the vision tower."""
    return KeyRanges(np.zeros(num_rows, np.int64), np.full(num_rows, num_keys - 1))


def prefix_lm(
    slot_T: Array, *, prefix_length: int, window: int | None = None, policy: str = "transformers"
) -> KeyRanges:
    """The key range of each query, by its slot in the sequence (0 is the first image token).

    `window` None is a full layer. `prefix_length` 0 is a causal model.
    """
    if policy not in WINDOW_POLICIES:
        raise UsageError(f"window policy {policy!r} is not one of {', '.join(WINDOW_POLICIES)}")
    in_prefix_T = slot_T < prefix_length
    first_T = np.zeros_like(slot_T)
    last_T = np.where(in_prefix_T, prefix_length - 1, slot_T)
    if window is None or policy == "big_vision":
        return KeyRanges(first_T, last_T)
    window_first_T = np.maximum(slot_T - (window - 1), 0)
    if policy == "transformers":
        return KeyRanges(np.where(in_prefix_T, 0, window_first_T), last_T)
    if policy == "keras":
        return KeyRanges(window_first_T, np.minimum(last_T, slot_T + (window - 1)))
    return KeyRanges(window_first_T, last_T)
