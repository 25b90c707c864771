"""Image embeddings from the truth instead of a tower: the language model learns to answer before the tower can see."""

import torch
from heads import LETTER_CLASSES
from locations import HARMONICS, WIDTH, location_basis
from patch_facts import GRID, SLOTS
from patch_targets import PatchTargets
from torch import Tensor, nn
from torch.nn import functional

from pg2ref.demo.drawing.colours import COLOURS
from pg2ref.demo.drawing.shapes import SHAPES

FACTS = 2 + len(SHAPES) + len(COLOURS) + 4 * WIDTH + 2 + (2 + SLOTS) * LETTER_CLASSES


class Oracle(nn.Module):
    """The facts of a patch, each in a direction of its own, and its place."""

    basis: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.facts = nn.Linear(FACTS, width, bias=False)
        self.places = nn.Parameter(torch.randn(GRID * GRID, width) * 0.3)
        nn.init.normal_(self.facts.weight, std=0.4)
        self.register_buffer("basis", location_basis() / HARMONICS**0.5, persistent=False)

    def forward(self, targets: PatchTargets) -> Tensor:
        """[N, P, width], what a projector would give for a tower that sees everything."""
        owned = targets.owned_NP[..., None]
        edges = self.basis[targets.edges_NP4.round().long()].flatten(2)
        letters = functional.one_hot(targets.letters_NPL, LETTER_CLASSES).flatten(2) * targets.text_NP[..., None]
        word = functional.one_hot(targets.word_NPL, LETTER_CLASSES).flatten(2) * targets.text_NP[..., None]
        of_objects = [
            functional.one_hot(targets.shape_NP, len(SHAPES)),
            functional.one_hot(targets.colour_NP, len(COLOURS)),
            edges,
            targets.pose_NP2,
        ]
        seen = [owned, targets.anchor_NP[..., None], *(part * owned for part in of_objects), letters, word]
        return self.facts(torch.cat([part.float() for part in seen], -1)) + self.places
