"""Archives of arrays, big_vision's .npz: zip files damaged, and whole zip files with absurd members."""

import io
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from random_mask_decoder import random_arrays

from fuzzing.mutation import Rng, mutate
from fuzzing.target import MB, Target
from pg2ref.checkpoint.vae_npz import read_mask_decoder

HEADERS = (
    "{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}",
    "{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, 'more': 1}}",
    "{{'descr': '{descr}', 'shape': {shape}}}",
    "{{'descr': [('a', '{descr}'), ('b', '<i4', (2, 2))], 'fortran_order': {order}, 'shape': {shape}}}",
    "{descr} {order} {shape}",
    "{{'descr': __import__('os').system('false'), 'fortran_order': {order}, 'shape': {shape}}}",
)
DESCRIPTIONS = ("<f4", ">f4", "<f8", "<f2", "|O", "<i4", "|V2", "|b1", "<U9999999", "x", "<f4'", "<c16", "<M8[D]", "")
SHAPES = (
    "(1,)",
    "()",
    "(128, 2)",
    "(128L, 2L)",
    "(2, 2, 1, 1)",
    "(-1,)",
    "(10**9,)",
    "1",
    "(99999999999,)",
    "(True,)",
    "(" * 300,
)


@cache
def arrays() -> dict[str, np.ndarray]:
    """A small mask decoder."""
    return random_arrays(2, code_width=2, width=2, upsample=(2, 2, 1, 1))


@cache
def seeds() -> tuple[bytes, ...]:
    """The archive stored, compressed, and in other types and orders."""
    found = []
    for packing, convert in (
        (zipfile.ZIP_STORED, lambda array: array),
        (zipfile.ZIP_DEFLATED, lambda array: array),
        (zipfile.ZIP_STORED, lambda array: np.asfortranarray(array.astype(np.float16))),
    ):
        named = ((f"{name}.npy", npy_file(convert(array))) for name, array in arrays().items())
        found.append(archive_of(named, packing))
    return tuple(found)


def npy_file(array: np.ndarray) -> bytes:
    """An .npy file of it."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@cache
def members() -> dict[str, bytes]:
    """Name -> the .npy file of each array."""
    with zipfile.ZipFile(io.BytesIO(seeds()[0])) as file:
        return {name: file.read(name) for name in file.namelist()}


def random_npy(rng: Rng) -> bytes:
    """An .npy file with a header of any kind."""
    header = rng.choice(HEADERS).format(
        descr=rng.choice(DESCRIPTIONS), order=rng.choice(("False", "True", "0", "None")), shape=rng.choice(SHAPES)
    )
    if rng.random() < 0.3:
        header = mutate(header.encode(), rng, [b"{'''", b"\t(\n  )\n"]).decode("latin-1")
    text = header.encode("latin-1", "replace") + b" " * rng.randrange(20) + b"\n"
    version = rng.choice(((1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
    length = struct.pack(
        "<H" if version == (1, 0) else "<I", (len(text) + rng.choice((0, 0, 0, 1, -1, 60_000))) % 65_536
    )
    return b"\x93NUMPY" + bytes(version) + length + text + bytes(rng.choice((0, 4, 2560, 5000)))


def rebuilt(rng: Rng, named: Mapping[str, bytes]) -> bytes:
    """An archive with one to three members replaced, removed, renamed or doubled; check sums are right."""
    changed = list(named.items())
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(changed))
        name, content = changed[at]
        how = rng.randrange(6)
        if how <= 1:
            changed[at] = name, mutate(content, rng, [content])
        elif how <= 3:
            changed[at] = name, random_npy(rng)
        elif how == 4:
            changed[at] = rng.choice((name.upper(), "x", name + "/", "../" + name, "é.npy")), content
        else:
            changed.insert(at, (name, content))
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    return archive_of(changed, packing)


def archive_of(named: Iterable[tuple[str, bytes]], packing: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of these members, laid out as NumPy does it, but of no time: the same whenever it is made."""
    archive = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(archive, "w", packing) as file:
        warnings.simplefilter("ignore")  # doubled names are meant
        for name, content in named:
            info = zipfile.ZipInfo(name)
            info.compress_type = packing
            with file.open(info, "w", force_zip64=True) as member:
                member.write(content)
    return archive.getvalue()


def bomb(rng: Rng, named: Mapping[str, bytes]) -> bytes:
    """A member that unpacks to far more than its shape."""
    padded = (
        (name, content + bytes(rng.choice((1 << 20, 1 << 26)) if "embedding" in name else 0))
        for name, content in named.items()
    )
    return archive_of(padded, zipfile.ZIP_DEFLATED)


def make_archive(rng: Rng) -> bytes:
    """Damaged, rebuilt, or a bomb."""
    how = rng.random()
    if how < 0.6:
        return mutate(rng.choice(seeds()), rng, seeds())
    return rebuilt(rng, members()) if how < 0.999 else bomb(rng, members())


def read_decoder(content: bytes, folder: Path) -> None:
    """Arrays of one network, finite."""
    path = folder / "vae-oid.npz"
    path.write_bytes(content)
    decoder = read_mask_decoder(path)
    assert decoder.codebook.shape[0] == 128
    assert decoder.project.weight.shape[1] == decoder.codebook.shape[1]
    assert np.isfinite(decoder.to_mask.weight).all()


TARGETS = (Target("mask decoder", make_archive, read_decoder, 64 * MB),)
