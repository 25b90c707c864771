"""The mask VAE in torch, with the names of big_vision's vae-oid.npz: what it exports, pg2ref reads.

Four strided convolutions, two residual blocks, 4 x 4 vectors, the nearest row of a codebook for each, and the way
back. The codebook follows running means of the vectors that chose a row (van den Oord et al. 2017, appendix A.1);
rows that nobody chooses are moved to vectors of the batch.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pg2ref.arrays import Array
from pg2ref.checkpoint.vae_npz import CODEBOOK, NUM_CODE_VALUES

COMMITMENT = 0.25
DECAY = 0.98
LEAST_USE = 0.02  # a running count below this, and a row is moved
EPS = 1e-5


class Residual(nn.Module):
    """x + conv(relu(conv(relu(conv(x))))), of sizes 3, 3 and 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """[B, width, Y, X] to the same shape."""
        return image + self.net(image)


class MaskVae(nn.Module):
    """Masks [B, 1, 64, 64] in [-1, 1] to codes [B, 16] and back."""

    def __init__(self, width: int = 64, code_width: int = 64, widths: tuple[int, ...] = (64, 32, 16, 8)) -> None:
        super().__init__()
        down: list[nn.Module] = []
        for inputs, outputs in pairwise((1, *reversed(widths[:3]), width)):
            down += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        self.encoder = nn.Sequential(*down, Residual(width), Residual(width), nn.Conv2d(width, code_width, 1))
        up: list[nn.Module] = []
        for inputs, outputs in pairwise((width, *widths)):
            up += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        self.decoder = nn.Sequential(
            nn.Conv2d(code_width, width, 1), nn.ReLU(), Residual(width), Residual(width), *up,
            nn.Conv2d(widths[-1], 1, 1),
        )  # fmt: skip
        self.register_buffer("codebook", torch.randn(NUM_CODE_VALUES, code_width) * 0.1)
        self.register_buffer("use", torch.ones(NUM_CODE_VALUES))
        self.register_buffer("sums", self.codebook.clone())

    def nearest(self, vectors: Tensor) -> Tensor:
        """The codebook row next to each vector: [rows, width] to [rows]."""
        return torch.cdist(vectors, self.codebook).argmin(1)

    def vectors(self, masks: Tensor) -> Tensor:
        """What the encoder says of the 4 x 4 places: [B * 16, width], row-major."""
        return self.encoder(masks).permute(0, 2, 3, 1).reshape(-1, self.codebook.shape[1])

    def decode(self, vectors: Tensor) -> Tensor:
        """[B * 16, width] to masks [B, 1, 64, 64]."""
        return self.decoder(vectors.reshape(-1, 4, 4, self.codebook.shape[1]).permute(0, 3, 1, 2))

    def forward(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructed masks, and the distance of the vectors to their rows, as a loss for the encoder."""
        vectors = self.vectors(masks)
        codes = self.nearest(vectors.detach())
        rows = self.codebook[codes]
        if self.training:
            self._follow(vectors.detach(), codes)
        straight_through = vectors + (rows - vectors).detach()
        return self.decode(straight_through), COMMITMENT * (vectors - rows).square().mean()

    @torch.no_grad()
    def _follow(self, vectors: Tensor, codes: Tensor) -> None:
        chosen = nn.functional.one_hot(codes, NUM_CODE_VALUES).to(vectors.dtype)
        self.use.lerp_(chosen.sum(0), 1 - DECAY)
        self.sums.lerp_(chosen.T @ vectors, 1 - DECAY)
        self.codebook.copy_(self.sums / (self.use[:, None] + EPS))
        unused = torch.nonzero(self.use < LEAST_USE)[:, 0]
        picked = vectors[torch.randint(len(vectors), (len(unused),))]
        self.codebook[unused], self.sums[unused], self.use[unused] = picked, picked, 1.0

    def encode(self, crops: Array) -> Array:
        """Crops [B, 64, 64] to codes [B, 16]."""
        with torch.no_grad():
            vectors = self.vectors(torch.from_numpy(crops)[:, None])
            return self.nearest(vectors).reshape(-1, 16).numpy()


def export(vae: MaskVae, path: Path) -> None:
    """Write all weights, the encoder's too, under the published names; float16 is exact enough and half as large."""
    stored = {name: tensor for name, tensor in vae.state_dict().items() if name.split(".")[0] in ("encoder", "decoder")}
    arrays: dict[str, Any] = {name: tensor.numpy().astype(np.float16) for name, tensor in stored.items()}
    arrays[CODEBOOK] = vae.codebook.numpy().astype(np.float16)
    np.savez_compressed(path, **arrays)


def read_exported(path: Path) -> MaskVae:
    """The exported network again, to encode training targets with."""
    with np.load(path) as stored:
        arrays = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files}
    width, code_width = arrays["decoder.0.weight"].shape[:2]
    vae = MaskVae(width, code_width, tuple(arrays[f"decoder.{layer}.bias"].numel() for layer in (4, 6, 8, 10)))
    vae.codebook.copy_(arrays.pop(CODEBOOK))
    missing, unexpected = vae.load_state_dict(arrays, strict=False)
    assert not unexpected, unexpected
    assert set(missing) == {"codebook", "use", "sums"}, missing
    return vae.eval()
