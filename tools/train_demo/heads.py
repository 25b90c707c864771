"""Auxiliary heads on the vision tower: each patch must tell what the questions will be about.

Linear, so that what they read is as easy for the language model to read. They are trained, and thrown away at export.
"""

from typing import NamedTuple

import torch
from locations import HARMONICS, WIDTH, location_basis, soft_targets
from patch_facts import CELLS, LETTERS, SLOTS
from patch_targets import PatchTargets
from torch import Tensor, nn
from torch.nn import functional

from pg2ref.demo.drawing.colours import COLOURS
from pg2ref.demo.drawing.shapes import SHAPES

EDGE_SCALE = 4.0
LETTER_CLASSES = len(LETTERS) + 1
NO_TEXT_WEIGHT = 0.03
SIZES = {
    "owned": 1,
    "anchor": 1,
    "inside": CELLS * CELLS,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "edges": 4 * WIDTH,
    "pose": 2,
    "distance": 4,
    "letters": 2 * LETTER_CLASSES,
    "word": SLOTS * LETTER_CLASSES,
}
WEIGHTS = {
    "owned": 0.5,
    "anchor": 1.0,
    "inside": 2.0,
    "shape": 1.0,
    "colour": 0.5,
    "edges": 0.5,
    "pose": 0.5,
    "distance": 2.0,
    "letters": 2.5,
    "word": 2.5,
}


class Readings(NamedTuple):
    """What the heads say of each patch; the fields of PatchTargets, as logits or numbers."""

    owned: Tensor
    anchor: Tensor
    inside: Tensor
    shape: Tensor
    colour: Tensor
    edges: Tensor  # [N, P, 4, WIDTH], to be multiplied with the basis
    pose: Tensor
    distance: Tensor
    letters: Tensor
    word: Tensor


class Heads(nn.Module):
    """One linear layer, cut into its parts."""

    basis: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(SIZES.values()))
        self.register_buffer("basis", location_basis(), persistent=False)

    def forward(self, features_NPE: Tensor) -> Readings:
        """Read every patch."""
        parts = dict(zip(SIZES, self.linear(features_NPE).split(list(SIZES.values()), -1), strict=True))
        shape = features_NPE.shape[:2]
        return Readings(
            parts["owned"][..., 0],
            parts["anchor"][..., 0],
            parts["inside"],
            parts["shape"],
            parts["colour"],
            parts["edges"].reshape(*shape, 4, WIDTH),
            parts["pose"],
            parts["distance"],
            parts["letters"].reshape(*shape, 2, LETTER_CLASSES),
            parts["word"].reshape(*shape, SLOTS, LETTER_CLASSES),
        )

    def edge_logits(self, coefficients: Tensor) -> Tensor:
        """[..., WIDTH] to logits over the location bins."""
        return coefficients @ (self.basis.T * (EDGE_SCALE / HARMONICS**0.5))

    def losses(self, features_NPE: Tensor, targets: PatchTargets, sigma: float) -> dict[str, Tensor]:
        """The loss of each head, unweighted; those about objects and words are means over patches that have one."""
        said = Readings(*(part.float() for part in self(features_NPE)))
        owned, text = targets.owned_NP, targets.text_NP
        letter_weight = torch.where(text, 1.0, NO_TEXT_WEIGHT)[..., None]
        letters = functional.cross_entropy(said.letters.flatten(0, 2), targets.letters_NPL.flatten(), reduction="none")
        edges = targets.edges_NP4[owned]
        return {
            "owned": functional.binary_cross_entropy_with_logits(said.owned, owned.float()),
            "anchor": 4 * functional.binary_cross_entropy_with_logits(said.anchor, targets.anchor_NP.float()),
            "inside": functional.binary_cross_entropy_with_logits(said.inside, targets.inside_NPC.float()),
            "shape": functional.cross_entropy(said.shape[owned], targets.shape_NP[owned]),
            "colour": functional.cross_entropy(said.colour[owned], targets.colour_NP[owned]),
            "edges": functional.cross_entropy(
                self.edge_logits(said.edges[owned]).flatten(0, 1), soft_targets(edges, sigma).flatten(0, 1)
            ),
            "pose": (said.pose[owned] - targets.pose_NP2[owned]).square().mean(),
            "distance": (said.distance[owned] - _distance(targets)[owned]).abs().mean(),
            "letters": (letters.view_as(targets.letters_NPL) * letter_weight).sum() / (2 * letter_weight.sum()),
            "word": _mean(
                functional.cross_entropy(
                    said.word[text].flatten(0, 1), targets.word_NPL[text].flatten(), reduction="none"
                )
            ),
        }


def _mean(values: Tensor) -> Tensor:
    """0 where there is nothing to take the mean of: a batch without a word."""
    return values.mean() if values.numel() else values.sum()


def _distance(targets: PatchTargets) -> Tensor:
    """Edges seen from the middle of each patch, in quarters of the picture."""
    grid = round(targets.owned_NP.shape[1] ** 0.5)
    middle = (torch.arange(grid) + 0.5) * (1024 / grid)
    y_P, x_P = middle.repeat_interleave(grid), middle.repeat(grid)
    return (targets.edges_NP4 - torch.stack([y_P, x_P, y_P, x_P], -1)) / 256


def weighted(losses: dict[str, Tensor]) -> Tensor:
    """Their sum as it is trained on."""
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


@torch.no_grad()
def measure(heads: Heads, features_NPE: Tensor, targets: PatchTargets) -> dict[str, float]:
    """How often each head is right, on its patches; boxes are means of the overlap at anchors."""
    said = heads(features_NPE)
    owned, anchor, text = targets.owned_NP, targets.anchor_NP, targets.text_NP
    seen = heads.edge_logits(said.edges[anchor]).argmax(-1).float()
    true = targets.edges_NP4[anchor]
    overlap = box_overlap(seen, true)
    letters = said.letters[text].argmax(-1) == targets.letters_NPL[text]
    counted = ((said.anchor > 0).sum(1) == anchor.sum(1)).float()
    return {
        "shape": float((said.shape[owned].argmax(-1) == targets.shape_NP[owned]).float().mean()),
        "colour": float((said.colour[owned].argmax(-1) == targets.colour_NP[owned]).float().mean()),
        "box_iou": float(overlap.mean()),
        "box_75": float((overlap > 0.75).float().mean()),
        "anchors": float(counted.mean()),
        "letters": float(letters.float().mean()),
        "word": float((said.word[text].argmax(-1) == targets.word_NPL[text]).all(-1).float().mean()),
    }


def box_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes [..., (y0, x0, y1, x1)]."""
    top, bottom = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    both = (bottom - top).clamp(min=0).prod(-1)
    areas = sum((box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second))
    return both / (areas - both).clamp(min=1)
