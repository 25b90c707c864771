"""A fixed basis for the 1024 location tokens: sines and cosines over the picture, 40 of each.

Edges that lie near each other have like rows, so that what is learned about one bin holds for its neighbours. The
vision tower's edge head and the language model's location embeddings share the basis: reading a box out of a patch
is then linear.
"""

import math

import torch
from torch import Tensor

BINS = 1024
HARMONICS = 40
WIDTH = 2 * HARMONICS


def location_basis() -> Tensor:
    """[BINS, WIDTH], each row of length sqrt(HARMONICS)."""
    angle = torch.arange(BINS)[:, None] * (math.pi / BINS) * torch.arange(1, HARMONICS + 1)
    return torch.cat([angle.cos(), angle.sin()], 1)


def soft_targets(bins: Tensor, sigma: float) -> Tensor:
    """Bell curves around bins, which may lie between two: [...] to probabilities [..., BINS]."""
    distance = (torch.arange(BINS) - bins[..., None]) / sigma
    return torch.softmax(-0.5 * distance.square(), -1)
