"""The safetensors reader: what it reads, that it copies nothing, and that no file can make it do anything else."""

import gc
import json
import mmap
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from pg2ref.checkpoint.safetensors_file import DTYPES, TensorFile, read_tensors
from pg2ref.errors import CheckpointError


def file_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def read_bytes(folder: Path, stored: bytes) -> TensorFile:
    path = folder / "model.safetensors"
    path.write_bytes(stored)
    return read_tensors(path)


def error_of(folder: Path, stored: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_bytes(folder, stored)
    message = str(caught.value)
    assert "model.safetensors" in message
    assert message.isprintable()
    assert len(message) < 600
    return message


def owner(array):
    """The object at the end of the chain of bases: what owns the memory."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def one(fields, data_bytes=4):
    return file_bytes({"a": fields}, bytes(data_bytes))


def two(a, b):
    return file_bytes({"a": entry("U8", [a[1] - a[0]], *a), "b": entry("U8", [b[1] - b[0]], *b)}, bytes(b[1]))


FOUR_BYTES = one(entry("F32", [1], 0, 4))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 5)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u1", "i2", "i4", "u4", "i8", "u8", "?"])
def test_reads_what_the_safetensors_package_wrote(tmp_path, dtype, shape):
    rng = np.random.default_rng(7)
    wanted = np.asarray(rng.integers(0, 2, size=shape)).astype(dtype)
    path = tmp_path / "model.safetensors"
    save_file({"wanted": wanted, "other": np.arange(7, dtype=np.float32)}, path, metadata={"format": "pt"})
    read = read_tensors(path)
    assert read.tensors["wanted"].dtype == wanted.dtype
    assert read.tensors["wanted"].shape == shape
    np.testing.assert_array_equal(read.tensors["wanted"], wanted)
    np.testing.assert_array_equal(read.tensors["other"], np.arange(7, dtype=np.float32))
    assert read.metadata == {"format": "pt"}
    assert read.file_bytes == path.stat().st_size
    with safe_open(path, "np") as package:
        assert read.stored_dtypes == {name: package.get_slice(name).get_dtype() for name in package.keys()}  # noqa: SIM118


def test_bf16_is_its_bit_patterns_and_the_package_sees_the_same_file(tmp_path):
    bits = np.array([[0x3F80, 0xC000, 0x7FC1], [0x0001, 0x8000, 0xFF80]], dtype=np.uint16)
    read = read_bytes(tmp_path, file_bytes({"w": entry("BF16", [2, 3], 0, 12)}, bits.tobytes()))
    assert read.tensors["w"].dtype == np.uint16
    np.testing.assert_array_equal(read.tensors["w"], bits)
    with safe_open(tmp_path / "model.safetensors", "np") as package:
        assert package.get_slice("w").get_dtype() == read.stored_dtypes["w"] == "BF16"
        assert package.get_slice("w").get_shape() == [2, 3]


def test_tensors_are_read_only_views_of_one_map(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4, dtype=np.float16)}, path)
    tensors = read_tensors(path).tensors
    assert isinstance(owner(tensors["a"]), mmap.mmap)
    assert owner(tensors["a"]) is owner(tensors["b"])
    for tensor in tensors.values():
        assert not tensor.flags.writeable
        assert not tensor.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            tensor[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            tensor.flags.writeable = True


def test_a_large_file_costs_no_memory(tmp_path):
    path, header = tmp_path / "model.safetensors", {"w": entry("BF16", [1 << 20, 1 << 10], 0, 1 << 31)}
    path.write_bytes(file_bytes(header))
    os.truncate(path, path.stat().st_size + (1 << 31))  # a hole: two gigabytes that take no disk
    tracemalloc.start()
    weight = read_tensors(path).tensors["w"]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert weight.shape == (1 << 20, 1 << 10)
    assert weight[-1, -1] == 0
    assert peak_bytes < 1 << 20


def test_the_map_outlives_the_file_name_and_the_reader(tmp_path):
    last = read_bytes(tmp_path, file_bytes({"a": entry("F32", [2], 0, 8)}, b"\0\0\x80\x3f" * 2)).tensors["a"]
    (tmp_path / "model.safetensors").unlink()
    gc.collect()
    np.testing.assert_array_equal(last, np.ones(2, np.float32))


@pytest.mark.parametrize("padding", range(8))
def test_odd_offsets_give_valid_views(tmp_path, padding):
    header = {"c": entry("U8", [1], 0, 1), "w": entry("F32", [2, 2], 1, 17)}
    stored = json.dumps(header).encode() + b" " * padding
    values = np.array([[1.5, -2.0], [3e-9, 1e30]], np.float32)
    weight = read_bytes(tmp_path, file_bytes(stored, b"\7" + values.tobytes())).tensors["w"]
    np.testing.assert_array_equal(weight, values)
    np.testing.assert_array_equal(weight @ np.eye(2, dtype=np.float32)[:, :1], values[:, :1])
    assert isinstance(owner(weight), mmap.mmap)


def test_no_tensors_is_a_valid_file(tmp_path):
    read = read_bytes(tmp_path, file_bytes({"__metadata__": {"by": "hand"}}))
    assert (read.tensors, read.metadata) == ({}, {"by": "hand"})


def test_tensors_come_in_the_order_of_their_bytes(tmp_path):
    header = {"z": entry("U8", [2], 1, 3), "e": entry("F64", [0], 1, 1), "a": entry("I8", [], 0, 1)}
    read = read_bytes(tmp_path, file_bytes(header, b"\xff\1\2"))
    assert list(read.tensors) == ["a", "e", "z"]
    assert [tensor.tolist() for tensor in read.tensors.values()] == [-1, [], [1, 2]]


def test_a_truncated_file_says_how_much_is_there(tmp_path):
    stored = file_bytes({"w": entry("F32", [1000], 0, 4000)}, bytes(4000))
    message = error_of(tmp_path, stored[:-1234])
    assert f"truncated: {len(stored) - 1234:,} of {len(stored):,} bytes; download it again" in message


def test_every_truncation_is_refused(tmp_path):
    for kept_bytes in range(len(FOUR_BYTES)):
        error_of(tmp_path, FOUR_BYTES[:kept_bytes])


HOSTILE = {
    "empty": (b"", "truncated: 0 bytes"),
    "length beyond the file": ((99).to_bytes(8, "little") + b"{}", "header alone ends at 107"),
    "length of a gigabyte": ((10**9).to_bytes(8, "little") + b"{}", "claims a header of 1,000,000,000 bytes"),
    "length of 2**64 - 1": (b"\xff" * 8 + b"{}", "claims a header"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "no header": (bytes(8) + b"{}", "does not start with {"),
    "not utf-8": (file_bytes(b'{"\xff":1}'), "not valid JSON"),
    "utf-16": (file_bytes('{"a": 1}'.encode("utf-16-le")), "not valid JSON"),
    "list": (file_bytes(b"[]"), "does not start with {"),
    "deep": (file_bytes(b'{"a":' + b"[" * 200_000), "nested too deeply"),
    "huge number": (file_bytes(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "duplicate tensor": (file_bytes(b'{"a":1,"a":2}'), "the key 'a' occurs twice"),
    "duplicate field": (file_bytes(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "'dtype' occurs twice"),
    "metadata list": (file_bytes({"__metadata__": ["x"]}), "map strings to strings"),
    "entry no object": (file_bytes({"a": 3}), "expected dtype, shape and data_offsets"),
    "entry lacks shape": (file_bytes({"a": {"dtype": "F32", "data_offsets": [0, 0]}}), "expected dtype"),
    "U16": (one(entry("U16", [1], 0, 2), 2), "'U16' cannot be used; convert"),
    "F8": (one(entry("F8_E4M3", [1], 0, 1), 1), "'F8_E4M3' cannot be used"),
    "dtype list": (one(entry(["F32"], [1], 0, 4)), "cannot be used"),
    "shape bool": (one(entry("F32", [True], 0, 4)), "shape must be"),
    "shape float": (one(entry("F32", [1.0], 0, 4)), "shape must be"),
    "shape nan": (one(entry("F32", [float("nan")], 0, 4)), "shape must be"),
    "shape negative": (one(entry("F32", [-1, -1], 0, 4)), "shape must be"),
    "shape of 99 axes": (one(entry("F32", [1] * 99, 0, 4)), "shape must be"),
    "shape of 2**64": (one(entry("F32", [2**64], 0, 4)), "shape must be"),
    "shape overflows": (one(entry("F32", [2**32, 2**30], 0, 0), 0), "no memory can hold"),
    "empty overflows": (one(entry("F32", [0, 2**62, 2**62], 0, 0), 0), "no memory can hold"),
    "offset negative": (one(entry("F32", [1], -4, 0)), "0 <= begin <= end"),
    "offset bool": (one(entry("U8", [1], False, True), 1), "0 <= begin <= end"),
    "offsets reversed": (one(entry("F32", [1], 4, 0)), "0 <= begin <= end"),
    "offset huge": (one(entry("F32", [1], 2**70, 2**70 + 4), 0), "0 <= begin <= end"),
    "span too long": (one(entry("F32", [1], 0, 8), 8), "its data_offsets span 8"),
    "hole in front": (one(entry("F32", [1], 4, 8), 8), "leaves a hole"),
    "hole between": (two([0, 1], [2, 3]), "'b' leaves a hole before it: it begins at data byte 2, expected 1"),
    "overlap": (two([0, 2], [1, 3]), "'b' overlaps"),
    "same bytes": (two([0, 2], [0, 2]), "overlaps"),
    "end beyond the file": (one(entry("U8", [9], 0, 9), 2), "truncated"),
    "trailing bytes": (FOUR_BYTES + b"\0", "1 bytes follow the last tensor"),
    "terminal escape": (file_bytes({"\x1b[2J": entry("F32", [0], 0, 0)}), "cannot be printed"),
    "lone surrogate": (file_bytes(b'{"\\ud800":1}'), "cannot be printed"),
    "bool of 2": (file_bytes({"a": entry("BOOL", [1], 0, 1)}, b"\2"), "BOOL bytes must be 0 or 1"),
    "long name": (file_bytes({"n" * 10_000: 3}), "..."),
}


@pytest.mark.parametrize(("stored", "expected"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_one_line_of_checkpoint_error(tmp_path, stored, expected):
    tracemalloc.start()
    message = error_of(tmp_path, stored)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert expected in message
    assert peak_bytes < 10_000_000


def test_what_is_no_file_is_said(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    for name, found in {"absent": "nothing", "link": "a broken link", ".": "a folder"}.items():
        with pytest.raises(CheckpointError, match=f"found {found}"):
            read_tensors(tmp_path / name)


def test_plain_16_bit_integers_never_pass_for_bf16():
    assert [name for name, dtype in DTYPES.items() if dtype == np.uint16] == ["BF16"]


VALID = file_bytes(
    {"__metadata__": {"format": "pt"}, "a": entry("BF16", [2, 3], 0, 12), "b": entry("BOOL", [2], 12, 14)},
    bytes(14),
)
SIZES = st.one_of(st.integers(-1, 9), st.integers())
SHAPES = st.lists(st.one_of(st.integers(0, 3), SIZES, st.booleans()), max_size=3)
ENTRIES = st.builds(entry, st.sampled_from([*DTYPES, "U16", None]), SHAPES, SIZES, st.integers(0, 9))
HEADERS = st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRIES, max_size=3)
WRITTEN = HEADERS.map(lambda header: file_bytes(header, bytes(9)))
EDITS = st.dictionaries(st.integers(0, len(VALID) - 1), st.integers(0, 255), min_size=1, max_size=4)
EDITED = EDITS.map(lambda edits: bytes(edits.get(place, byte) for place, byte in enumerate(VALID)))
RANDOM = st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(file_bytes))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=st.one_of(RANDOM, EDITED, WRITTEN))
def test_only_checkpoint_errors_come_out(tmp_path, stored):
    try:
        read = read_bytes(tmp_path, stored)
    except CheckpointError:
        return  # any other exception fails the test
    assert sum(tensor.nbytes for tensor in read.tensors.values()) <= len(stored)
    assert b"".join(tensor.tobytes() for tensor in read.tensors.values()) in stored
