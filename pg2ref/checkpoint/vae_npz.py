"""Reads a mask decoder from an .npz file in the layout of big_vision's vae-oid.npz.

    _vq_vae._embedding                     (128, Z)                  the codebook
    decoder.0                              (W, Z, 1, 1)              .weight and .bias each, of convolutions
    decoder.2.net.{0,2,4}, decoder.3 ...   (W, W, 3, 3) (W, W, 3, 3) (W, W, 1, 1)      residual blocks
    decoder.4, 6, 8, 10                    (in, out, 4, 4)           transposed, in torch's order
    decoder.12                             (1, in, 1, 1)

Widths are those found (128, and 64, 32, 16 in the published file). An .npz is a zip file of .npy files, and neither is
trusted: nothing is unpickled, and no member is unpacked further than its shape allows. Other members, the encoder's,
are left alone.
"""

import math
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.checkpoint.npy_header import read_npy_header
from pg2ref.errors import CheckpointError, brief
from pg2ref.model.vqvae import Convolution, MaskDecoder, ResidualBlock

VAE_NAME = "vae-oid.npz"
CODEBOOK = "_vq_vae._embedding"
BLOCKS, UPSAMPLE, LAST = (2, 3), (4, 6, 8, 10), 12
NUM_CODE_VALUES = 128
MOST_WIDTH = 1024
MOST_FILE_BYTES = 256 * 2**20
MOST_MEMBERS = 4096
DTYPES = ("<f2", "<f4", "<f8")


class _Archive(NamedTuple):
    name: str
    file: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]


def read_mask_decoder(path: Path) -> MaskDecoder:
    """The decoder's weights in float32.

    Raises:
        CheckpointError: the file is missing, damaged, or not in this layout.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: expected a mask decoder, {VAE_NAME} of big_vision, found no file")
        if path.stat().st_size > MOST_FILE_BYTES:
            raise CheckpointError(f"{path.name}: {path.stat().st_size:,} bytes, a mask decoder has some millions")
        with zipfile.ZipFile(path) as file:
            return _decoder(_Archive(path.name, file, _members(path.name, file)))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        got = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{path.name}: expected a whole .npz file, got {got}; download it again") from error


def _members(name: str, file: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = file.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(infos) > MOST_MEMBERS or len(members) != len(infos):
        raise CheckpointError(
            f"{name}: expected at most {MOST_MEMBERS} members, each once, got {len(infos)}, {len(members)} different"
        )
    return members


def _decoder(archive: _Archive) -> MaskDecoder:
    codebook = _read(archive, CODEBOOK, (NUM_CODE_VALUES, None))
    project = _convolution(archive, "decoder.0", (None, codebook.shape[1], 1, 1), out_axis=0)
    width = len(project.bias)
    blocks = []
    for block in BLOCKS:
        sizes = {0: 3, 2: 3, 4: 1}
        blocks.append(
            ResidualBlock(
                *(
                    _convolution(archive, f"decoder.{block}.net.{layer}", (width, width, size, size), out_axis=0)
                    for layer, size in sizes.items()
                )
            )
        )
    upsample = []
    for layer in UPSAMPLE:
        upsample.append(_convolution(archive, f"decoder.{layer}", (width, None, 4, 4), out_axis=1))
        width = len(upsample[-1].bias)
    to_mask = _convolution(archive, f"decoder.{LAST}", (1, width, 1, 1), out_axis=0)
    return MaskDecoder(codebook, project, tuple(blocks), tuple(upsample), to_mask)


def _convolution(archive: _Archive, name: str, shape: tuple[int | None, ...], *, out_axis: int) -> Convolution:
    weight = _read(archive, f"{name}.weight", shape)
    return Convolution(weight, _read(archive, f"{name}.bias", (weight.shape[out_axis],)))


def _read(archive: _Archive, name: str, shape: tuple[int | None, ...]) -> Array:
    """One array in float32; None in `shape` is a width that the file decides."""
    at = f"{archive.name}: {name}"
    if name not in archive.members:
        raise CheckpointError(f"{at} is missing: expected the layout of big_vision's {VAE_NAME}")
    with archive.file.open(archive.members[name]) as stream:
        descr, fortran_order, stored_shape = read_npy_header(stream, at)
        fits = len(stored_shape) == len(shape) and all(
            1 <= size <= MOST_WIDTH if wanted is None else size == wanted
            for size, wanted in zip(stored_shape, shape, strict=True)
        )
        if not fits or descr not in DTYPES:
            expected = ", ".join("width" if size is None else str(size) for size in shape)
            raise CheckpointError(
                f"{at}: expected {' or '.join(DTYPES)} of shape ({expected}), got {brief(descr)} {brief(stored_shape)}"
            )
        dtype = np.dtype(descr)
        nbytes = math.prod(stored_shape) * dtype.itemsize
        content = stream.read(nbytes + 1)
    if len(content) != nbytes:
        raise CheckpointError(f"{at}: expected {nbytes:,} bytes, got {'more' if len(content) > nbytes else 'fewer'}")
    array = np.frombuffer(content, dtype).reshape(stored_shape, order="F" if fortran_order else "C")
    widened = array.astype(np.float32, order="C")
    if not np.isfinite(widened).all():
        raise CheckpointError(f"{at} holds NaN or infinity; download the file again")
    return widened
