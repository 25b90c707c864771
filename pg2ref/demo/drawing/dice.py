"""Random whole numbers that are the same for a seed with every NumPy, on every platform.

NumPy promises that for the raw stream of a bit generator, not for what `Generator` makes of it (NEP 19).
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from pg2ref.arrays import Array

Item = TypeVar("Item")
DRAWN_AT_ONCE = 256
MOST_SEED = 2**64 - 1


class Dice:
    """Draws from Philox-4x64 (Salmon et al. 2011) under the key (seed, stream)."""

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._bits = np.random.Philox(key=(stream << 64) | seed)
        self._waiting: list[int] = []

    def below(self, bound: int) -> int:
        """0 to bound - 1. What is not a power of two is drawn unevenly by 1 part in 2**64 / bound."""
        if not self._waiting:
            self._waiting = self._bits.random_raw(DRAWN_AT_ONCE).tolist()
        return (self._waiting.pop() * bound) >> 64

    def between(self, least: int, most: int) -> int:
        """`least` to `most`, both included."""
        return least + self.below(most - least + 1)

    def choose(self, items: Sequence[Item]) -> Item:
        """One of them."""
        return items[self.below(len(items))]

    def percent(self, share: int) -> bool:
        """True in `share` of 100 cases."""
        return self.below(100) < share

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All of them in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(len(left))]

    def bytes_(self, count: int) -> Array:
        """So many random bytes, uint8 [count]."""
        words = self._bits.random_raw((count + 7) // 8)
        return words.astype("<u8").view(np.uint8)[:count]
