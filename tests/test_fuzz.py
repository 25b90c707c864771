"""Some hundreds of hostile inputs for every reader (tools/fuzz.py tries as many as it is asked), and what was found."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import lora_folders
import numpy as np
import pytest
from fuzzing import big_vision_inputs, npz_inputs
from fuzzing.registry import TARGETS
from fuzzing.target import Target
from fuzzing.trial import Tally, make_input, peak_bytes, run_trials
from released_json import released_config
from safetensors.numpy import save_file

from pg2ref.adapters.adapter import read_adapter
from pg2ref.adapters.lora_config import read_lora_config
from pg2ref.batch.rows import read_rows
from pg2ref.checkpoint.big_vision import load_big_vision
from pg2ref.checkpoint.loader import mismatches
from pg2ref.checkpoint.shards import INDEX_NAME, weight_files
from pg2ref.checkpoint.vae_npz import read_mask_decoder
from pg2ref.config import parse_config, read_config
from pg2ref.errors import CheckpointError, ConfigError, InputError
from pg2ref.inputs.image import read_image
from pg2ref.inputs.video import read_frames
from pg2ref.outputs.detection import parse
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


CONTROL = "\x1b[2J\u202e"


def test_an_adapter_does_not_write_to_the_terminal(tmp_path: Path) -> None:
    lora_folders.write(tmp_path, {}, base_model_name_or_path=CONTROL)
    with pytest.raises(CheckpointError, match=r"trained on, '.x1b") as caught:
        read_adapter(tmp_path, parse_config(released_config("small")))
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


LONG_NAMES = [f"{i}" + "x" * 500 for i in range(40)]


@pytest.mark.parametrize("kind", ["", ".lora_A.weight", ".weight"])
def test_endless_names_of_tensors_in_an_adapter(kind: str, tmp_path: Path) -> None:
    lora_folders.write(tmp_path, {}, target_modules=["o_proj"])
    save_file(
        {name + kind: np.full((2, 2), np.nan, np.float32) for name in LONG_NAMES},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match="80 problems") as caught:
        read_adapter(tmp_path, parse_config(released_config("small")))
    assert len(str(caught.value)) < 4000


def test_endless_names_of_tensors_in_a_checkpoint() -> None:
    unexpected = mismatches({name: np.ones(2, np.uint16) for name in LONG_NAMES}, {}, None)
    assert [len(line) < 200 for line in unexpected] == [True] * 40


def test_an_archive_does_not_write_to_the_terminal(tmp_path: Path) -> None:
    named = {f"{CONTROL}.npy": big_vision_inputs.npy((2,), "<i4"), f"{CONTROL}!.npy": b"no array"}
    for name, content in named.items():
        (tmp_path / "pt.npz").write_bytes(npz_inputs.archive_of([(name, content)]))
        with pytest.raises(CheckpointError, match=r"pt\.npz: '.x1b.*expected (f32|an \.npy member)") as caught:
            load_big_vision(tmp_path / "pt.npz")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [CONTROL, "\0", "x" * 5000], ids=["control", "nul", "long"])
@pytest.mark.parametrize("read", [read_image, read_frames])
def test_names_of_files_do_not_write_to_the_terminal(read: Callable[[str], object], name: str) -> None:
    with pytest.raises(InputError, match=r"expected (an image file|a video), got: ") as caught:
        read(f"nowhere/{name}")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_row_with_an_endless_field() -> None:
    (row,) = read_rows(io.BytesIO(json.dumps({"x" * 9000: 1}).encode()), Path(), "ocr")
    assert "unknown field" in str(row.error)
    assert len(str(row.error)) < 400


@pytest.mark.parametrize("pattern", ["(?i)Q_PROJ", "(?x)q_proj # one"])
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern", "modules_to_save"])
def test_patterns_that_stop_being_one_inside_another(field: str, pattern: str, tmp_path: Path) -> None:
    fields = {field: [pattern] if field == "modules_to_save" else {pattern: 3}}
    lora_folders.write(tmp_path, {}, **fields)
    with pytest.raises(ConfigError, match=f"{field} has .*, no regular expression"):
        read_lora_config(tmp_path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_numpy_does_not_write(packing: int, tmp_path: Path) -> None:
    """What unpacks LZMA leaves by an exception of its own where a byte is wrong."""
    (tmp_path / "pt.npz").write_bytes(npz_inputs.archive_of(big_vision_inputs.members(True, "<f4").items(), packing))
    with pytest.raises(CheckpointError, match=f"stored or deflated, .* got method {packing} of zip"):
        load_big_vision(tmp_path / "pt.npz")


def test_a_problem_of_an_answer_fits_a_line() -> None:
    """Characters that are shown as ten each."""
    (problem,) = parse("\U000e0001" * 60 + "<loc0001><loc0001><loc0002><loc0002>").problems
    assert problem.startswith("words before the first box: '\\U000e0001")
    assert problem.endswith("...'")
    assert len(problem) < 160
