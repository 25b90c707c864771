"""The weight files of a folder: which are read, how they are merged, and what is said when they do not fit."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pg2ref.checkpoint.shards import INDEX_NAME, name_some, read_checkpoint_tensors, weight_files
from pg2ref.errors import CheckpointError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WEIGHT_MAP = {"a": FIRST, "b": FIRST, "c": SECOND}


def save(path: Path, **tensors: float) -> None:
    """Each tensor is its number, three times."""
    save_file({name: np.full(3, value, np.float32) for name, value in tensors.items()}, path, {"format": "pt"})


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path):
    save(tmp_path / FIRST, a=1, b=2)
    save(tmp_path / SECOND, c=3)
    write_index(tmp_path, WEIGHT_MAP)
    return tmp_path


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint_tensors(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def values_of(folder: Path) -> dict[str, float]:
    return {name: float(tensor[0]) for name, tensor in read_checkpoint_tensors(folder).tensors.items()}


def test_a_single_file(tmp_path):
    save(tmp_path / "model.safetensors", a=1)
    stored = read_checkpoint_tensors(tmp_path)
    assert stored.tensors["a"].tolist() == [1, 1, 1]
    assert not stored.tensors["a"].flags.writeable
    assert stored.files == (tmp_path / "model.safetensors",)
    assert stored.total_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert stored.metadata == {"format": "pt"}


def test_shards_are_merged(sharded):
    stored = read_checkpoint_tensors(sharded)
    assert values_of(sharded) == {"a": 1, "b": 2, "c": 3}
    assert stored.files == weight_files(sharded) == (sharded / FIRST, sharded / SECOND)
    assert stored.total_bytes == sum((sharded / shard).stat().st_size for shard in (FIRST, SECOND))
    assert stored.metadata == {"format": "pt"}


def test_where_metadata_disagree_the_first_file_counts(sharded):
    save_file({"c": np.zeros(1)}, sharded / SECOND, {"format": "np", "by": "hand"})
    assert read_checkpoint_tensors(sharded).metadata == {"format": "pt", "by": "hand"}


def test_a_single_file_comes_before_an_index_as_in_transformers(sharded):
    save(sharded / "model.safetensors", other=9)
    assert values_of(sharded) == {"other": 9}


def test_shards_may_be_links_into_blobs(sharded, tmp_path_factory):
    blobs = tmp_path_factory.mktemp("blobs")
    os.replace(sharded / FIRST, blobs / "0123abc")
    (sharded / FIRST).symlink_to(blobs / "0123abc")
    assert values_of(sharded)["a"] == 1


def test_one_file_under_another_name_is_accepted_an_adapter_beside_it_is_not_read(tmp_path):
    save(tmp_path / "pg2-merged.safetensors", a=4)
    save(tmp_path / "adapter_model.safetensors", lora=5)
    assert values_of(tmp_path) == {"a": 4}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "it is empty"),
        (["config.json"], "it holds config.json"),
        (["a.safetensors", "b.safetensors"], "several safetensors files: a.safetensors, b.safetensors"),
        (["adapter_model.safetensors"], "only an adapter"),
        ([SECOND], f"{INDEX_NAME} is missing, which the shards {SECOND} need"),
        (["pytorch_model.bin"], "must be safetensors, found pytorch_model.bin"),
        (["paligemma2.npz", "x.gguf"], "must be safetensors, found paligemma2.npz, x.gguf"),
    ],
)
def test_a_folder_without_usable_weights_says_what_it_holds(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).touch()
    assert expected in error_of(tmp_path)


def test_an_absent_folder_is_said(tmp_path):
    assert "cannot be listed" in error_of(tmp_path / "absent")


def test_missing_shards_are_listed_by_name(sharded):
    (sharded / SECOND).unlink()
    assert f"1 of 2 shards are missing: {SECOND}" in error_of(sharded)
    (sharded / FIRST).unlink()
    (sharded / FIRST).symlink_to("gone")
    assert f"2 of 2 shards are missing: {FIRST}, {SECOND}" in error_of(sharded)
    with pytest.raises(CheckpointError, match="2 of 2"):
        weight_files(sharded)


def test_a_damaged_shard_is_named(sharded):
    with open(sharded / SECOND, "r+b") as stream:
        stream.truncate(40)
    assert SECOND in error_of(sharded)
    assert len(weight_files(sharded)) == 2  # it looks at names only


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        (WEIGHT_MAP | {"d": FIRST}, f"1 not in the shard that the index names: d ({FIRST})"),
        (WEIGHT_MAP | {"c": FIRST}, f"1 not in the shard that the index names: c ({FIRST})"),
        ({"a": FIRST, "c": SECOND}, f"1 in no line of the index: b ({FIRST})"),
        ({f"t{i}": FIRST for i in range(9)}, "t0 (" + FIRST),
    ],
)
def test_index_and_shards_must_agree(sharded, weight_map, expected):
    write_index(sharded, weight_map)
    assert expected in error_of(sharded)


def test_all_faults_are_told_at_once(sharded):
    save(sharded / SECOND, b=7, extra=8)
    message = error_of(sharded)
    assert f"c ({SECOND})" in message
    assert f"1 in two shards: b ({FIRST}, {SECOND})" in message
    assert f"1 in no line of the index: extra ({SECOND})" in message


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "sub/model.safetensors",
        "/model.safetensors",
        "sub\\model.safetensors",
        "..",
        "",
        "a\0.safetensors",
        "a\n.safetensors",
        "\ud800.safetensors",
        "config.json",
        None,
        3,
        ["x.safetensors"],
    ],
)
def test_a_shard_must_be_a_plain_file_name(sharded, shard):
    save(sharded.parent / "model.safetensors", a=1)
    write_index(sharded, {"a": shard})
    assert "must be a plain name.safetensors" in error_of(sharded)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"{}", "weight_map must map"),
        (b'{"weight_map": {}}', "weight_map must map"),
        (b'{"weight_map": ["a"]}', "weight_map must map"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' occurs twice"),
        (b'{"weight_map":' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_index_is_refused(sharded, text, expected):
    (sharded / INDEX_NAME).write_bytes(text)
    message = error_of(sharded)
    assert INDEX_NAME in message
    assert expected in message


def test_an_index_that_is_too_large_or_no_file_is_refused(sharded):
    os.truncate(sharded / INDEX_NAME, 10**9)  # a hole, which takes no disk
    assert "1,000,000,000 bytes are too many" in error_of(sharded)
    (sharded / INDEX_NAME).unlink()
    (sharded / INDEX_NAME).mkdir()
    assert "cannot be read" in error_of(sharded)


def test_names_in_messages_are_few_and_printable():
    assert name_some(["b", "a"]) == "a, b"
    assert name_some([str(i) for i in range(9)], limit=2) == "0, 1 and 7 more"
    assert name_some(["x\n\x1b"]) == r"'x\n\x1b'"
