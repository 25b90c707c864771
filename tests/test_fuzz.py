"""Some hundreds of hostile inputs for every reader (tools/fuzz.py tries as many as it is asked), and what was found."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fuzzing import npz_inputs
from fuzzing.registry import TARGETS
from fuzzing.target import Target
from fuzzing.trial import Tally, make_input, peak_bytes, run_trials
from released_json import released_config

from pg2ref.checkpoint.shards import INDEX_NAME, weight_files
from pg2ref.checkpoint.vae_npz import read_mask_decoder
from pg2ref.config import read_config
from pg2ref.errors import CheckpointError, ConfigError, InputError
from pg2ref.outputs.rle import decode_mask

SOME = 250


def tally_of(target: Target, folder: Path, count: int = SOME) -> Tally:
    tally = Tally()
    assert list(run_trials(target, 1, range(count), folder, tally)) == list(range(count))
    assert list(folder.iterdir()) == []
    return tally


@pytest.mark.parametrize("name", TARGETS)
def test_some_inputs(name: str, tmp_path: Path) -> None:
    tally = tally_of(TARGETS[name], tmp_path)
    assert tally.faults == []
    assert tally.tried == sum(tally.outcomes.values()) == SOME
    assert tally.outcomes["read"] >= SOME // 100, "inputs so damaged that they test one refusal only"
    assert len(tally.messages) > 1 or name == "answer"


def test_an_input_is_made_again_by_its_number() -> None:
    for target in TARGETS.values():
        assert make_input(target, 3, 17) == make_input(target, 3, 17) != make_input(target, 3, 18)


# What counts as a fault: each is injected.


def memory_hog(content: bytes, folder: Path) -> None:
    assert np.ones(peak_bytes(), np.uint8).any()  # as much again as ever: seen even where peaks cannot be forgotten


def escaping(content: bytes, folder: Path) -> None:
    raise InputError(f"expected text, got \x1b[2J{content!r}")


def endless(content: bytes, folder: Path) -> None:
    raise InputError("expected text, got " + "x" * 5000)


def leaking(content: bytes, folder: Path) -> None:
    raise KeyError(content)


def looping(content: bytes, folder: Path) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (memory_hog, "FAULT memory grew by"),
        (escaping, "FAULT AssertionError: control characters"),
        (endless, "FAULT AssertionError: a message of 5019"),
        (leaking, "FAULT KeyError"),
        (looping, "FAULT TooSlow"),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="signals and limits of another kind")
def test_faults_are_seen(read: object, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if read is looping:
        monkeypatch.setattr("fuzzing.trial.MOST_SECONDS", 1)
    target = Target("made", lambda rng: rng.randbytes(3), read, 1 << 20)  # type: ignore[arg-type]
    (fault,) = tally_of(target, tmp_path, 1).faults
    assert fault["what"].startswith(says)
    assert len(bytes.fromhex(fault["bytes"])) == 3


# Found by it, and repaired.


@pytest.mark.parametrize(
    "rle",
    [
        5,
        [],
        {},
        {"size": [3, 4]},
        {"size": 3, "counts": "1"},
        {"size": [3], "counts": "1"},
        {"size": [3, 4, 1], "counts": "1"},
        {"size": [3, None], "counts": "1"},
        {"size": [True, 1], "counts": "1"},
        {"size": [-1, -1], "counts": "1"},
        {"size": [0, 2**64], "counts": ""},
        {"size": [float("nan"), 1], "counts": "1"},
        {"size": [1 << 15, 1 << 15], "counts": "PPPP1"},
        {"size": [3, 4], "counts": None},
        {"size": [3, 4], "counts": [12]},
        {"size": [3, 4], "counts": ["12"]},
    ],
    ids=str,
)
def test_run_lengths_of_another_kind(rle: object) -> None:
    with pytest.raises(InputError, match=r"^run lengths: expected"):
        decode_mask(rle)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), ",  # NumPy repairs it: TokenError
        b"{'''",
        b"(" * 300,
        b"{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L,)}",  # of Python 2: NumPy reads it, with a warning
        b"{[]: 1}",
    ],
)
def test_npy_headers(header: bytes, tmp_path: Path) -> None:
    def changed(name: str, content: bytes) -> bytes:
        if name != "decoder.0.bias.npy":
            return content
        return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content[-8:]

    members = npz_inputs.members().items()
    (tmp_path / "vae.npz").write_bytes(
        npz_inputs.archive_of((name, changed(name, content)) for name, content in members)
    )
    with pytest.raises(CheckpointError, match=r"decoder\.0\.bias: expected (an \.npy header|a plain array)"):
        read_mask_decoder(tmp_path / "vae.npz")


@pytest.mark.parametrize("field", [{"projection_dim": "\x1b[2J"}, {"\x1b[2J": 1}, {"model_type": "x" * 9000}], ids=str)
def test_a_file_does_not_write_to_the_terminal(field: dict[str, object], tmp_path: Path) -> None:
    """Control sequences, and pages of text."""
    (tmp_path / "config.json").write_text(json.dumps({**released_config("small"), **field}))
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "config.json")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_shards_with_endless_names(tmp_path: Path) -> None:
    names = {f"w{i}": "x" * 5000 + f"{i}.safetensors" for i in range(30)}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match="30 of 30 shards are missing") as caught:
        weight_files(tmp_path)
    assert len(str(caught.value)) < 4000


def test_a_json_file_of_any_size(tmp_path: Path) -> None:
    with open(tmp_path / "config.json", "wb") as stream:
        stream.truncate(1 << 34)  # a hole; nothing of it is read
    with pytest.raises(ConfigError, match="17,179,869,184 bytes are too many"):
        read_config(tmp_path / "config.json")
