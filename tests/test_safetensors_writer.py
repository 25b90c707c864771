"""The safetensors writer: what others read of its files, pieces in any order, and nothing half-written."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from pg2ref.arrays import Array
from pg2ref.checkpoint.safetensors_file import STORED_NAMES, read_tensors
from pg2ref.checkpoint.safetensors_writer import Planned, lay_out, new_tensor_file, plan_shards, write_shards
from pg2ref.checkpoint.shards import read_checkpoint_tensors


def tensors(rng: np.random.Generator) -> dict[str, Array]:
    return {
        "odd": rng.integers(0, 256, 13, np.uint8),
        "matrix": rng.integers(0, 1 << 16, (8, 16), np.uint16),
        "float": rng.standard_normal((3, 5)).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(7, np.int64),
    }


def planned(stored: dict[str, Array]) -> dict[str, Planned]:
    return {name: Planned(tensor.dtype, tensor.shape) for name, tensor in stored.items()}


def write(path: Path, stored: dict[str, Array]) -> None:
    with new_tensor_file(path, planned(stored)) as put:
        for name, tensor in stored.items():
            put(name, tensor)


def test_what_is_written_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    stored, path = tensors(rng), tmp_path / "model.safetensors"
    write(path, stored)
    read = read_tensors(path)
    assert set(read.tensors) == set(stored)
    for name, tensor in stored.items():
        assert read.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read.tensors[name], tensor)
    assert read.metadata == {"format": "pt"}


def test_the_safetensors_package_reads_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    stored, path = tensors(rng), tmp_path / "model.safetensors"
    write(path, stored)
    with safe_open(path, "np") as package:
        assert set(package.keys()) == set(stored)
        for name, tensor in stored.items():
            part = package.get_slice(name)
            assert (part.get_dtype(), part.get_shape()) == (STORED_NAMES[tensor.dtype], list(tensor.shape))
        np.testing.assert_array_equal(package.get_tensor("float"), stored["float"])


def test_whole_cache_lines_begin_at_one(rng: np.random.Generator) -> None:
    stored = tensors(rng)
    start, begins = lay_out(planned(stored))
    assert len(start) % 64 == 0
    assert [begins[name] % 64 for name in ("matrix", "empty")] == [0, 0]
    assert begins["odd"] > begins["matrix"], "an odd one would push the others off their lines"


def test_pieces_come_in_any_order(tmp_path: Path, rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((6, 4)), rng.integers(0, 9, (9, 2))
    path = tmp_path / "model.safetensors"
    with new_tensor_file(path, planned({"a": a, "b": b})) as put:
        put("b", b[:4])
        put("a", a[:1])
        put("b", b[4:])
        put("a", a[1:].T.copy().T)  # not contiguous
    read = read_tensors(path).tensors
    np.testing.assert_array_equal(read["a"], a)
    np.testing.assert_array_equal(read["b"], b)


def test_too_much_and_too_little_are_mistakes(tmp_path: Path) -> None:
    path, one = tmp_path / "model.safetensors", {"a": np.zeros(4, np.float32)}
    with pytest.raises(AssertionError, match="a: more than was planned"), new_tensor_file(path, planned(one)) as put:
        put("a", np.zeros(5, np.float32))
    with pytest.raises(AssertionError, match="less than was planned"), new_tensor_file(path, planned(one)) as put:
        put("a", np.zeros(3, np.float32))
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path: Path) -> None:
    path, one = tmp_path / "model.safetensors", {"a": np.zeros(4, np.float32)}
    write(path, one)
    before = path.read_bytes()

    def write_half() -> None:
        with new_tensor_file(path, planned(one)) as put:
            put("a", np.ones(2, np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [found.name for found in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == before


def test_shards_are_filled_in_order() -> None:
    sizes = {"a": 4, "b": 5, "c": 20, "d": 1, "e": 9}
    assert plan_shards(sizes, 100) == {"model.safetensors": ["a", "b", "c", "d", "e"]}
    assert plan_shards(sizes, 10) == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],  # larger than a shard
        "model-00003-of-00003.safetensors": ["d", "e"],
    }


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 300])
def test_a_folder_of_shards(max_shard_bytes: int, tmp_path: Path, rng: np.random.Generator) -> None:
    stored = {name: tensor for name, tensor in tensors(rng).items() if name != "empty"}
    plan = {name: planned({f"{name}.codes": tensor, f"{name}.scales": tensor}) for name, tensor in stored.items()}
    write_shards(tmp_path, plan, lambda name: [(key, stored[name]) for key in plan[name]], max_shard_bytes)
    read = read_checkpoint_tensors(tmp_path)
    assert (len(read.files) > 1) == (max_shard_bytes == 300)
    assert set(read.tensors) == {f"{name}.{part}" for name in stored for part in ("codes", "scales")}
    for name, tensor in stored.items():
        np.testing.assert_array_equal(read.tensors[f"{name}.scales"], tensor)
    if len(read.files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == 2 * sum(tensor.nbytes for tensor in stored.values())
        assert index["weight_map"]["odd.codes"] == index["weight_map"]["odd.scales"], "the parts of one stay together"
