"""The keys and values of everything a sequence has read so far: the one object that changes in place.

With it a new token costs one row of work; without it the whole sequence is computed again. Both give the same
numbers (a test shows it). Keys are stored after rotation, heads are not repeated.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.config import Gemma2Config
from pg2ref.errors import Pg2RefError


class KVCache:
    """Room for `capacity_tokens` tokens of one sequence, allocated once and never grown.

    `dtype` is that of the stored numbers; uint16 stores them rounded to bf16 (arrays.py), by `to_bf16`.
    `prefix_length` is the number of leading tokens that read each other in both directions.
    """

    def __init__(
        self,
        config: Gemma2Config,
        capacity_tokens: int,
        prefix_length: int,
        dtype: np.dtype[Any],
        to_bf16: Callable[[Array], Array] = f32_to_bf16,
    ) -> None:
        shape = (config.num_hidden_layers, capacity_tokens, config.num_key_value_heads, config.head_dim)
        self.key_LSKH = np.zeros(shape, dtype)
        self.value_LSKH = np.zeros(shape, dtype)
        self.prefix_length = prefix_length
        self.to_bf16 = to_bf16
        self.length = 0

    def write(self, layer: int, key_TKH: Array, value_TKH: Array) -> tuple[Array, Array]:
        """Store one layer's new rows behind the `length` finished ones; return views of old and new together."""
        stop = self.length + key_TKH.shape[0]
        if stop > self.key_LSKH.shape[1]:
            raise Pg2RefError(f"the KV cache has room for {self.key_LSKH.shape[1]} tokens, {stop} were written")
        for stored_LSKH, rows_TKH in ((self.key_LSKH, key_TKH), (self.value_LSKH, value_TKH)):
            is_bf16 = stored_LSKH.dtype == np.uint16
            stored_LSKH[layer, self.length : stop] = self.to_bf16(rows_TKH) if is_bf16 else rows_TKH
        return self.key_LSKH[layer, :stop], self.value_LSKH[layer, :stop]

    def advance(self, tokens: int) -> None:
        """Declare `tokens` more tokens finished, after every layer has written them."""
        self.length += tokens

    def rewind(self, tokens: int) -> None:
        """Forget all but the first `tokens`; what is written next takes the place of the rest."""
        self.length = tokens

    def fork(self) -> "KVCache":
        """A second sequence that has read the same tokens (beam search)."""
        twin = object.__new__(KVCache)
        shape, dtype = self.key_LSKH.shape, self.key_LSKH.dtype
        twin.key_LSKH, twin.value_LSKH = np.zeros(shape, dtype), np.zeros(shape, dtype)  # pages come when written
        twin.key_LSKH[:, : self.length] = self.key_LSKH[:, : self.length]
        twin.value_LSKH[:, : self.length] = self.value_LSKH[:, : self.length]
        twin.prefix_length, twin.length, twin.to_bf16 = self.prefix_length, self.length, self.to_bf16
        return twin
