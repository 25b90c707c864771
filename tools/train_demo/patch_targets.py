"""Facts of scenes as tensors: what each patch should tell, for the auxiliary heads and the oracle alike."""

from typing import NamedTuple

import numpy as np
import torch
from scene_store import Scenes
from torch import Tensor

from pg2ref.arrays import Array


class PatchTargets(NamedTuple):
    """N scenes, P patches; what is said of a patch's object holds only where `owned_NP`."""

    owned_NP: Tensor
    anchor_NP: Tensor
    inside_NPC: Tensor
    shape_NP: Tensor
    colour_NP: Tensor
    edges_NP4: Tensor  # bins, y0 x0 y1 x1
    pose_NP2: Tensor  # degrees / 15, and the root of the share of the picture, times 4
    letters_NPL: Tensor
    word_NPL: Tensor
    text_NP: Tensor  # whether there is a letter in it


def patch_targets(scenes: Scenes) -> PatchTargets:
    """Spread what is known of each object over its patches."""
    owned_NP = scenes.owner_NP >= 0
    row_N1 = np.arange(len(owned_NP))[:, None]
    owner_NP = scenes.owner_NP.clip(0)

    def spread(of_objects: Array) -> Tensor:
        return torch.from_numpy(of_objects[row_N1, owner_NP])

    edges_NO4 = (scenes.box_NO4[..., [1, 0, 3, 2]] * (1023 / scenes.size_N[:, None, None])).astype(np.float32)
    pose_NO2 = np.stack([scenes.degrees_NO / 15, np.sqrt(scenes.area_NO) * 4], -1).astype(np.float32)
    text_NP = (scenes.letters_NPL > 0).any(-1)
    return PatchTargets(
        torch.from_numpy(owned_NP),
        torch.from_numpy(scenes.anchor_NP),
        torch.from_numpy(scenes.inside_NPC),
        spread(scenes.shape_NO.clip(0)).long(),
        spread(scenes.colour_NO.clip(0)).long(),
        spread(edges_NO4),
        spread(pose_NO2),
        torch.from_numpy(scenes.letters_NPL).long(),
        torch.from_numpy(np.repeat(scenes.word_NL[:, None], owned_NP.shape[1], 1)).long(),
        torch.from_numpy(text_NP),
    )


def pixel_tensor(scenes: Scenes) -> Tensor:
    """float32 [N, C, Y, X] in [-1, 1], as pg2ref's preprocessing gives them."""
    pixels = torch.from_numpy(scenes.pixels_NYXC).permute(0, 3, 1, 2).contiguous()
    return (pixels.float() / 255 - 0.5) / 0.5
