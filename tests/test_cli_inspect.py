"""`pg2ref inspect`: what a checkpoint is, its tensors, and whether every number in it is one."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import random_checkpoint
import tokenizer_model
from cli_runner import Run

from pg2ref.checkpoint.tensor_table import expected_shapes
from pg2ref.config import parse_config

FIELDS = """schema model folder files bytes tensors parameters weights image_size_px image_tokens vision_layers
vision_width decoder_layers decoder_width query_heads key_value_heads head_width query_scale sliding_window
attention_soft_cap logit_soft_cap vocabulary output_matrix tokenizer_pieces numbers_checked""".split()


@pytest.fixture
def copy(small_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_folder, tmp_path / "copy")


def header_and_data(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    stored = path.read_bytes()
    end = 8 + int.from_bytes(stored[:8], "little")
    return json.loads(stored[8:end]), stored[end:]


def write_safetensors(path: Path, header: Mapping[str, object], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def append_tensor(path: Path, name: str, stored_dtype: str, values: np.ndarray) -> None:
    header, data = header_and_data(path)
    offsets = [len(data), len(data) + values.nbytes]
    entry = {"dtype": stored_dtype, "shape": list(values.shape), "data_offsets": offsets}
    write_safetensors(path, header | {name: entry}, data + values.tobytes())


def test_json_fields_and_contents(run: Run, small_folder: Path) -> None:
    ran = run("inspect", small_folder, "--json")
    assert (ran.code, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert list(facts) == FIELDS
    expected = {
        "schema": "pg2ref/inspect/1",
        "model": "PaliGemma 2, a size of its own",
        "folder": str(small_folder),
        "files": 1,
        "bytes": (small_folder / "model.safetensors").stat().st_size,
        "tensors": 101,
        "weights": "bf16",
        "image_size_px": 56,
        "image_tokens": 16,
        "vision_layers": 3,
        "decoder_layers": "4 (2 sliding, 2 full)",
        "query_scale": "12 ** -0.5",
        "sliding_window": 9,
        "attention_soft_cap": 5.0,
        "vocabulary": 2432,
        "tokenizer_pieces": 2353,
        "numbers_checked": False,
    }
    assert {key: facts[key] for key in expected} == expected
    _, data = header_and_data(small_folder / "model.safetensors")
    assert facts["parameters"] == len(data) // 2


def test_page_says_the_same(run: Run, small_folder: Path) -> None:
    facts = json.loads(run("inspect", small_folder, "--json").out)
    lines = run("inspect", "-m", small_folder).out.splitlines()
    assert len(lines) == len(facts) - 1  # the schema is for machines
    shown = {line[:26].rstrip().replace(" ", "_"): line[27:] for line in lines}
    assert shown.pop("numbers_checked") == "no"
    assert shown == {key: str(facts[key]) for key in shown}


def test_keys(run: Run, small_folder: Path) -> None:
    plain, listed = run("inspect", small_folder), run("inspect", small_folder, "--keys")
    page = listed.out.removeprefix(plain.out).splitlines()
    header, _ = header_and_data(small_folder / "model.safetensors")
    header.pop("__metadata__")
    assert page == [f"{name}  bf16 {entry['shape']}" for name, entry in sorted(header.items())]
    facts = json.loads(run("inspect", small_folder, "--keys", "--json").out)
    assert facts["tensors"] == len(facts["keys"]) == 101
    assert facts["keys"]["language_model.model.norm.weight"] == {"type": "bf16", "shape": [72]}


def test_verify(run: Run, copy: Path) -> None:
    ran = run("inspect", copy, "--verify")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1].split() == ["numbers", "checked", "yes"]
    header, data = header_and_data(copy / "model.safetensors")
    name = "language_model.model.layers.3.mlp.up_proj.weight"
    _, end = header[name]["data_offsets"]  # type: ignore[misc]
    write_safetensors(copy / "model.safetensors", header, data[: end - 2] + b"\xff\xff" + data[end:])
    assert run("inspect", copy).code == 0  # only --verify reads the numbers
    ran = run("inspect", copy, "--verify")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (5, "", 1)
    assert f"1 of 101 tensors hold NaN or infinity: {name}; download" in ran.err


def test_buffers_of_old_files_are_no_weights(run: Run, copy: Path) -> None:
    """Early releases carry position_ids, whole numbers that nothing reads."""
    name = "vision_tower.vision_model.embeddings.position_ids"
    append_tensor(copy / "model.safetensors", name, "I64", np.arange(16)[None])
    facts = json.loads(run("inspect", copy, "--keys", "--verify", "--json").out)
    assert (facts["weights"], facts["tensors"]) == ("bf16", 102)
    assert facts["keys"][name] == {"type": "int64", "shape": [1, 16]}


def test_an_own_output_matrix(run: Run, copy: Path) -> None:
    head = np.full((2432, 72), 0.5, np.float16)
    append_tensor(copy / "model.safetensors", "language_model.lm_head.weight", "F16", head)
    facts = json.loads(run("inspect", copy, "--json").out)
    assert (facts["output_matrix"], facts["weights"]) == ("its own lm_head", "bf16+f16")


def test_weights_that_cannot_be_computed_with(run: Run, copy: Path) -> None:
    header, data = header_and_data(copy / "model.safetensors")
    for entry in header.values():
        if entry.get("shape") == [160, 72]:
            entry["dtype"] = "I16"
    write_safetensors(copy / "model.safetensors", header, data)
    ran = run("inspect", copy)
    assert ran.code == 5
    assert "8 problems" in ran.err
    assert "wrong type  language_model.layers.0.mlp.up_proj.weight: expected bf16, f16, f32, got int16" in ran.err


@pytest.mark.parametrize("size", ["3b-224", "28b-896"])
def test_published_sizes_by_their_names(run: Run, tmp_path: Path, size: str) -> None:
    """A file as large as the released weights, all of it a hole, is looked at without being read."""
    config_json = random_checkpoint.released_config(size)
    config = parse_config(config_json)
    header, end = {}, 0
    for name, shape in expected_shapes(config).items():
        begin, end = end, end + 2 * int(np.prod(shape))
        entry = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
        header[random_checkpoint.released_name(name)] = entry
    write_safetensors(tmp_path / "model.safetensors", header, b"")
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.truncate((tmp_path / "model.safetensors").stat().st_size + end)
    (tmp_path / "config.json").write_text(json.dumps(config_json))
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model.build(2000))
    ran = run("inspect", tmp_path, "--json")
    assert (ran.code, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert facts["model"] == f"PaliGemma 2 {size}"
    assert facts["parameters"] == {"3b-224": 3_032_242_416, "28b-896": 27_654_910_704}[size]
