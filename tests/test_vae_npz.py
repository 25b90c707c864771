"""The reader of vae-oid.npz: the layout as it is, and nothing else, however hostile."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_mask_decoder import random_arrays
from unpacked_pieces import watch_pieces

from pg2ref.arrays import Array
from pg2ref.checkpoint.vae_npz import read_mask_decoder
from pg2ref.errors import CheckpointError

Arrays = dict[str, Array]
SMALL = {"code_width": 5, "width": 7, "upsample": (6, 5, 3, 2)}


@pytest.fixture
def arrays() -> Arrays:
    return random_arrays(2, **SMALL)  # type: ignore[arg-type]


def save(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def npy(array: Array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def zip_with(path: Path, arrays: Arrays, **members: bytes) -> Path:
    """The arrays as a compressed archive, with some members replaced by these bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            file.writestr(f"{name}.npy", members.get(name, npy(array)))
    return path


def test_every_array_arrives(arrays: Arrays, tmp_path: Path) -> None:
    arrays |= {"encoder.0.weight": np.zeros((3, 3)), "anything": np.array([None])}  # the encoder is not looked at
    decoder = read_mask_decoder(save(tmp_path / "vae.npz", arrays))
    assert (decoder.codebook == arrays["_vq_vae._embedding"]).all()
    assert (decoder.project.weight == arrays["decoder.0.weight"]).all()
    assert (decoder.blocks[1].second.weight == arrays["decoder.3.net.2.weight"]).all()
    assert (decoder.blocks[0].third.bias == arrays["decoder.2.net.4.bias"]).all()
    assert [step.weight.shape[:2] for step in decoder.upsample] == [(7, 6), (6, 5), (5, 3), (3, 2)]
    assert (decoder.to_mask.bias == arrays["decoder.12.bias"]).all()


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_other_floats_and_orders_are_converted(dtype: str, arrays: Arrays, tmp_path: Path) -> None:
    stored = {name: np.asfortranarray(array.astype(dtype)) for name, array in arrays.items()}
    decoder = read_mask_decoder(zip_with(tmp_path / "vae.npz", stored))
    assert decoder.upsample[2].weight.dtype == np.float32
    assert (decoder.upsample[2].weight == stored["decoder.8.weight"].astype(np.float32)).all()


def with_array(name: str, array: Any) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: np.asarray(array)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda arrays: arrays.pop("decoder.8.bias"), r"decoder\.8\.bias is missing"),
        (with_array("_vq_vae._embedding", np.zeros((127, 5), "f4")), r"or <f8 of shape \(128, width\)"),
        (with_array("decoder.0.weight", np.zeros((7, 4, 1, 1), "f4")), r"\(width, 5, 1, 1\)"),
        (with_array("decoder.4.weight", np.zeros((6, 7, 4, 4), "f4")), r"\(7, width, 4, 4\)"),
        (with_array("decoder.10.weight", np.zeros((3, 2, 4, 4), "i4")), "got '<i4'"),
        (with_array("decoder.12.weight", np.zeros((2, 2, 1, 1), "f4")), r"\(1, 2, 1, 1\)"),
        (with_array("decoder.0.bias", np.zeros((7, 1), "f4")), r"\(7\)"),
        (with_array("decoder.0.weight", np.zeros((1025, 5, 1, 1), "f4")), r"\(width, 5, 1, 1\)"),
        (with_array("decoder.0.weight", np.zeros((0, 5, 1, 1), "f4")), r"\(width, 5, 1, 1\)"),
        (with_array("decoder.4.bias", [np.nan] * 6), "NaN or infinity"),
        (with_array("decoder.4.bias", np.array([print] * 6, object)), r"got '\|O'"),
    ],
)  # fmt: skip
def test_other_layouts_are_refused(change: Callable[[Arrays], None], says: str, arrays: Arrays, tmp_path: Path) -> None:
    change(arrays)
    with pytest.raises(CheckpointError, match=says):
        read_mask_decoder(save(tmp_path / "vae.npz", arrays))


def test_nothing_is_unpickled(arrays: Arrays, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    hostile = npy(np.array([Bomb()], object))
    with pytest.raises(CheckpointError, match=r"got '\|O'"):
        read_mask_decoder(zip_with(tmp_path / "vae.npz", arrays, **{"decoder.0.bias": hostile}))
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(CheckpointError, match=r"expected an \.npy member"):
        read_mask_decoder(zip_with(tmp_path / "vae.npz", arrays, **{"decoder.0.bias": pickle.dumps(Bomb())}))
    assert not (tmp_path / "exploded").exists()


def test_a_member_is_unpacked_no_further_than_its_shape(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zip bomb: 64 MB of zeros behind an honest header, in some kilobytes."""
    pieces = watch_pieces(monkeypatch)
    bomb = npy(arrays["decoder.0.bias"]) + bytes(64 * 2**20)
    path = zip_with(tmp_path / "vae.npz", arrays, **{"decoder.0.bias": bomb})
    assert path.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="expected 28 bytes, got more"):
        read_mask_decoder(path)
    assert max(pieces) < 20_000


@pytest.mark.parametrize(
    "header",
    [
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
        b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr':'<f4',}" ,
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }".ljust(117) + b"\n",
        b"",
        b"PK",
    ],
)  # fmt: skip
def test_headers_lie_in_vain(header: bytes, arrays: Arrays, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected"):
        read_mask_decoder(zip_with(tmp_path / "vae.npz", arrays, **{"decoder.0.bias": header}))


def test_damaged_archives_are_refused(arrays: Arrays, tmp_path: Path) -> None:
    whole = save(tmp_path / "vae.npz", arrays).read_bytes()
    rng = np.random.default_rng(0)
    packed = zip_with(tmp_path / "packed.npz", arrays).read_bytes()
    broken = [b"", b"no zip", whole[: len(whole) // 2], whole[100:]]
    for source in (whole, packed):
        for _ in range(60):
            changed = bytearray(source)
            changed[int(rng.integers(len(source)))] ^= 1 << int(rng.integers(8))
            broken.append(bytes(changed))
    refused = 0
    for content in broken:
        (tmp_path / "broken.npz").write_bytes(content)
        try:
            read_mask_decoder(tmp_path / "broken.npz")
        except CheckpointError as error:
            refused += "\n" not in str(error)
    assert refused > 60  # zip checks every member's sum; changes in dates and the like go unseen


def test_a_name_occurs_once_and_files_exist(arrays: Arrays, tmp_path: Path) -> None:
    path = save(tmp_path / "vae.npz", arrays)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("decoder.0.bias.npy", b"")
    with pytest.raises(CheckpointError, match="each once"):
        read_mask_decoder(path)
    for missing in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(CheckpointError, match="found no file"):
            read_mask_decoder(missing)
