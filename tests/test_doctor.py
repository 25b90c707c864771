"""`pg2ref doctor`: memory needs against files and measurements, memory from /proc and control groups, the cache."""

import json
from pathlib import Path

import numpy as np
import pytest
import random_checkpoint
from cli_runner import Run, make_run, run_process
from released_json import released_config

from pg2ref.arrays import Array
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.config import parse_config
from pg2ref.doctor.machine import Memory, read_memory, usable_cpus
from pg2ref.doctor.memory_need import Need, need, verdict, weight_bytes
from pg2ref.model.kv_cache import KVCache
from pg2ref.published import PUBLISHED

SMALL = parse_config(released_config("small"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "models--google--paligemma2-3b-mix-224"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return make_run(capsys, monkeypatch)


@pytest.mark.parametrize("to", [None, "int8", "int4"])
def test_weights_are_those_of_the_files(to: str | None, tmp_path: Path) -> None:
    random_checkpoint.write_checkpoint(tmp_path, released_config("small"), to=to)
    stored = sum(tensor.nbytes for tensor in load_checkpoint(tmp_path).tensors.values())
    assert weight_bytes(SMALL, to or "bf16") == stored


@pytest.mark.parametrize(("precision", "dtype"), [("f32", np.float32), ("bf16", np.uint16), ("int4", np.uint16)])
def test_keys_and_values_are_those_of_the_cache(precision: str, dtype: type) -> None:
    cache = KVCache(SMALL.text, SMALL.vision.num_image_tokens + 31, 0, np.dtype(dtype))
    stored: list[Array] = [cache.key_LSKH, cache.value_LSKH]
    assert need(SMALL, precision, 31).keys_and_values == sum(array.nbytes for array in stored)


@pytest.mark.parametrize(
    ("size", "precision", "file_gb", "least_mb", "most_mb"),
    [("3b-224", "bf16", 6.06, 221, 233), ("10b-224", "int8", 10.7, 321, 321), ("28b-224", "int4", 16.2, 405, 405)],
)
def test_needs_are_those_that_were_measured(
    size: str, precision: str, file_gb: float, least_mb: float, most_mb: float
) -> None:
    """By tools/size_report.py on random weights, with 14 tokens of text: anonymous memory at its peak."""
    needed = need(PUBLISHED[size], precision, 14)
    assert needed.weights / 1e9 == pytest.approx(file_gb, rel=0.005)
    assert least_mb * 0.95 < needed.anonymous / 1e6 < most_mb * 1.05


def test_verdicts() -> None:
    needed = Need(weights=60, keys_and_values=10, working=30)
    assert (needed.anonymous, needed.total) == (40, 100)
    assert [verdict(needed, 200, available) for available in (100, 99)] == ["fits", "tight"]
    assert [verdict(needed, total, 50) for total in (100, 99)] == ["tight", "no"]
    assert verdict(needed, 200, None) == verdict(needed, None, None) == "unknown"


MEMINFO = "MemTotal:       24000 kB\nMemFree:         100 kB\nMemAvailable:   20000 kB\nHugePages_Total: 0\n"


def test_memory_of_a_machine(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    expected = Memory(24000 * 1024, 20000 * 1024, "machine")
    assert read_memory(tmp_path / "meminfo", tmp_path) == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert read_memory(tmp_path / "meminfo", tmp_path) == expected


@pytest.mark.parametrize(
    "names",
    [
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ],
)
def test_memory_of_a_container(names: tuple[str, str, str], tmp_path: Path) -> None:
    """Files in the page cache count as its own, but can be given up."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory").mkdir()
    contents = ("10000000\n", "9000000\n", "anon 1\ninactive_file 5000000\nactive_file 1000000\n")
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).write_text(content)
    assert read_memory(tmp_path / "meminfo", tmp_path) == Memory(10_000_000, 7_000_000, "container")
    (tmp_path / names[0]).write_text(f"{1 << 40}\n")  # no limit at all
    assert read_memory(tmp_path / "meminfo", tmp_path).limited_by == "machine"


def test_memory_without_proc(tmp_path: Path) -> None:
    found = read_memory(tmp_path / "none", tmp_path)
    assert found.available is None
    assert found.total is None or found.total > 1 << 28


def write_snapshot(cache: Path, model: str, config: object) -> Path:
    snapshot = cache / model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cache / model / "refs").mkdir()
    (cache / model / "blobs").mkdir()
    (cache / model / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text(json.dumps(config))
    return snapshot


def test_what_is_in_the_cache(run: Run, tmp_path: Path) -> None:
    """Whole, partial, and another model that is none of ours."""
    snapshot = write_snapshot(tmp_path / "hub", MODEL, released_config("3b-224"))
    write_snapshot(tmp_path / "hub", "models--openai--gpt", {"model_type": "gpt2"})
    (snapshot / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    )
    (snapshot / "1.safetensors").write_bytes(b"12345")
    (tmp_path / "hub" / MODEL / "blobs" / "abc.incomplete").write_bytes(bytes(20_000_000))
    (found,) = json.loads(run("doctor", "--json").out)["cache"]["models"]
    assert (found["name"], found["size"]) == ("google/paligemma2-3b-mix-224", "3b-224")
    assert "1 of 2 shards are missing: 2.safetensors" in found["problem"]
    assert found["unfinished_bytes"] == 20_000_000
    line = next(line for line in run("doctor").out.splitlines() if "google/paligemma2-3b-mix-224: " in line)
    assert "partial (0.02 GB of unfinished files are kept): " in line
    assert line.endswith("`pg2ref download google/paligemma2-3b-mix-224` goes on")
    (snapshot / "2.safetensors").write_bytes(b"123")
    (found,) = json.loads(run("doctor", "--json").out)["cache"]["models"]
    assert (found["problem"], found["bytes"]) == (None, 8)
    assert "whole, 0.00 GB, 3b-224, not quantised" in run("doctor").out


def test_the_object_and_the_lines(run: Run) -> None:
    ran = run("doctor", "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert found["schema"] == "pg2ref/doctor/1"
    assert [(one["size"], one["precision"]) for one in found["sizes"]][:5] == [
        *(("3b-224", precision) for precision in ("f32", "bf16", "int8", "int4")),
        ("3b-448", "f32"),
    ]
    assert len(found["sizes"]) == 36
    assert all(one["verdict"] in ("fits", "tight", "no", "unknown") for one in found["sizes"])
    assert 1 <= found["threads"]["used"] <= found["threads"]["usable"] == usable_cpus()
    assert 0 <= found["kernels"]["ready"] <= found["kernels"]["total"] == 15
    text = run("doctor").out
    assert all(f"\n{size} " in text for size in PUBLISHED)
    assert f"path {found['cpu']['path']}" in text
    assert "no PaliGemma; `pg2ref download" in text


def test_threads_and_no_compiler() -> None:
    """In a process of its own: both are read when Numba is imported."""
    found = json.loads(run_process("doctor", "--threads", 1, "--json").stdout)
    assert found["threads"]["used"] == 1
