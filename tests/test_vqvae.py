"""The mask decoder: against loops in Python numbers, and against torch's own modules."""

from pathlib import Path

import numpy as np
import pytest
from closeness import assert_close
from oracles import naive_vqvae
from random_mask_decoder import random_arrays

from pg2ref.arrays import Array
from pg2ref.checkpoint.vae_npz import read_mask_decoder
from pg2ref.errors import ShapeError
from pg2ref.model.vqvae import Convolution, MaskDecoder, convolve, convolve_transposed, decode_codes

SMALL = {"code_width": 5, "width": 7, "upsample": (6, 5, 3, 2)}
TERMS = 9 * 7  # numbers that are summed in the widest convolution


def decoder_of(arrays: dict[str, Array], folder: Path) -> MaskDecoder:
    np.savez(folder / "vae.npz", **arrays)
    return read_mask_decoder(folder / "vae.npz")


@pytest.fixture
def codes(rng: np.random.Generator) -> Array:
    return rng.integers(0, 128, 16)


@pytest.mark.parametrize("size", [1, 3])
def test_convolution(size: int, rng: np.random.Generator) -> None:
    image, weight = rng.normal(size=(5, 7, 3)), rng.normal(size=(2, 3, size, size))
    exact = np.array(naive_vqvae.convolve(image.tolist(), weight.tolist(), [0.5, -1.0]))
    assert_close(convolve(image, Convolution(weight, np.array([0.5, -1.0]))), exact, "convolve", terms=3 * size * size)


def test_transposed_convolution(rng: np.random.Generator) -> None:
    image, weight = rng.normal(size=(5, 7, 3)), rng.normal(size=(3, 2, 4, 4))
    exact = np.array(naive_vqvae.convolve_transposed(image.tolist(), weight.tolist(), [0.5, -1.0]))
    made = convolve_transposed(image, Convolution(weight, np.array([0.5, -1.0])))
    assert made.shape == (10, 14, 2)
    assert_close(made, exact, "convolve", terms=3 * 4)


def test_whole_decoder(codes: Array, tmp_path: Path) -> None:
    arrays = random_arrays(3, **SMALL)  # type: ignore[arg-type]
    exact = np.array(naive_vqvae.decode(arrays, codes.tolist()))
    mask_YX = decode_codes(decoder_of(arrays, tmp_path), codes)
    assert mask_YX.dtype == np.float32
    assert_close(mask_YX, exact, "mask decoder", terms=TERMS)
    assert np.ptp(mask_YX) > 0.1


def test_codes_lie_row_by_row(tmp_path: Path) -> None:
    """Another code in one place changes the mask most around that place, not around a mirrored one."""
    decoder = decoder_of(random_arrays(3, **SMALL), tmp_path)  # type: ignore[arg-type]
    codes = np.zeros(16, int)
    codes[3] = 1  # row 0, column 3: the top right
    change = np.abs(decode_codes(decoder, codes) - decode_codes(decoder, np.zeros(16, int)))
    corners = [change[:16, :16], change[:16, 48:], change[48:, :16], change[48:, 48:]]
    assert np.argmax([corner.mean() for corner in corners]) == 1


@pytest.mark.parametrize("wrong", [np.zeros(15, int), np.full(16, 128), np.full(16, -1)])
def test_other_codes_are_refused(wrong: Array, tmp_path: Path) -> None:
    decoder = decoder_of(random_arrays(3, **SMALL), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="expected 16 codes from 0 to 127"):
        decode_codes(decoder, wrong)


@pytest.mark.parity
def test_torch_gives_the_same_mask(codes: Array, tmp_path: Path) -> None:
    """The published widths, put together from torch's modules under the names of the file."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Residual(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            relu = nn.ReLU
            self.net = nn.Sequential(
                nn.Conv2d(128, 128, 3, padding=1), relu(), nn.Conv2d(128, 128, 3, padding=1), relu(),
                nn.Conv2d(128, 128, 1),
            )  # fmt: skip

        def forward(self, image: object) -> object:
            return image + self.net(image)

    layers: list[object] = [nn.Conv2d(512, 128, 1), nn.ReLU(), Residual(), Residual()]
    for inputs, outputs in ((128, 128), (128, 64), (64, 32), (32, 16)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Conv2d(16, 1, 1)).double()
    arrays = random_arrays(1)
    module.load_state_dict(
        {
            name.removeprefix("decoder."): torch.from_numpy(array.astype(np.float64))
            for name, array in arrays.items()
            if name.startswith("decoder.")
        }
    )
    table = torch.from_numpy(arrays["_vq_vae._embedding"].astype(np.float64))
    with torch.no_grad():
        theirs = module(table[torch.from_numpy(codes)].reshape(1, 4, 4, 512).permute(0, 3, 1, 2))[0, 0].numpy()
    assert_close(decode_codes(decoder_of(arrays, tmp_path), codes), theirs, "mask decoder", terms=9 * 128)
