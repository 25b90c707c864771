"""Traces with adapters: what they say of them, and what is said where two runs had others."""

import hashlib
import json
import shutil
from pathlib import Path

import lora_folders
import numpy as np
import pytest
from cli_runner import Run

import pg2ref
from pg2ref.adapters.identity import are_same, identify, listed
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.checkpoint.tensor_table import expected_shapes
from pg2ref.parity.records import Record, open_record
from pg2ref.parity.runs_apart import adapters_apart

SCENE = Path(__file__).parent / "data" / "scene.png"


@pytest.fixture(scope="module")
def lora(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = expected_shapes(load_checkpoint(small_folder).config)
    tensors = lora_folders.thin_matrices(shapes, 3, seed=1, dora=False)
    return lora_folders.write(tmp_path_factory.mktemp("adapters") / "my-lora", tensors)


@pytest.fixture
def plain(run: Run, small_folder: Path, tmp_path: Path) -> Path:
    run("trace", SCENE, "-m", small_folder, "-q", "-o", tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def tuned(run: Run, small_folder: Path, lora: Path, tmp_path: Path) -> Path:
    run("trace", SCENE, "-m", small_folder, "--adapter", lora, "--with-floor", "-q", "-o", tmp_path / "tuned")
    return tmp_path / "tuned"


def test_a_trace_is_of_the_adapted_model_and_names_the_adapter(small_folder: Path, lora: Path, tuned: Path) -> None:
    record = open_record(tuned)
    for name, array in (
        pg2ref.load(small_folder, precision="f64", adapters=[lora]).trace(SCENE, "caption en").stages.items()
    ):
        np.testing.assert_array_equal(record.stages[name].read(), array, strict=True)
    digests = [
        hashlib.sha256((lora / f"adapter_{file}").read_bytes()).hexdigest()
        for file in ("model.safetensors", "config.json")
    ]
    (said,) = json.loads(record.facts["model"])["adapters"]
    assert said == {"name": "my-lora", "sha256": digests[0], "config_sha256": digests[1]}
    assert str(lora.parent) not in json.dumps(dict(record.facts)), "no paths of this machine"


def test_compare_says_which_run_had_adapters(run: Run, lora: Path, plain: Path, tuned: Path) -> None:
    ran = run("compare", tuned, plain)
    said = f"REFERENCE was run with {listed([identify(lora)])}, OTHER with none"
    assert ran.code == 1
    assert f"other adapters: {said}" in ran.out.splitlines()
    assert json.loads(run("compare", tuned, plain, "--json").out)["runs_apart"] == f"other adapters: {said}"


def test_the_same_adapter_in_another_folder_is_the_same(
    run: Run, small_folder: Path, lora: Path, tuned: Path, tmp_path: Path
) -> None:
    shutil.copytree(lora, tmp_path / "elsewhere")
    run("trace", SCENE, "-m", small_folder, "--adapter", tmp_path / "elsewhere", "-q", "-o", tmp_path / "again")
    ran = run("compare", tuned, tmp_path / "again")
    assert (ran.code, "other adapters" in ran.out) == (0, False)


def test_the_scale_and_the_order_matter(lora: Path, tmp_path: Path) -> None:
    stronger = shutil.copytree(lora, tmp_path / "my-lora")
    fields = json.loads((stronger / "adapter_config.json").read_text())
    (stronger / "adapter_config.json").write_text(json.dumps({**fields, "lora_alpha": 60}))
    one, other = identify(lora), identify(stronger)
    assert not are_same([one], [other])
    assert not are_same([one, other], [other, one])
    assert are_same([one, other], [{**one, "name": "x"}, other])


def test_blocks_are_run_with_the_adapters_of_the_reference(
    run: Run, small_folder: Path, lora: Path, tuned: Path
) -> None:
    options = ["compare", tuned, tuned, "--isolate", "-m", small_folder]
    ran = run(*options)
    assert (ran.code, ran.out) == (2, "")
    assert f"recorded with other adapters: expected {listed([identify(lora)])}, got none" in ran.err
    assert run(*options, "--adapter", lora).code == 0
    ran = run("compare", tuned, tuned, "--adapter", lora)
    assert (ran.code, "add -m MODEL" in ran.err) == (2, True)


@pytest.mark.parametrize("facts", [{}, {"model": "{"}, {"model": "[]"}, {"model": '{"adapters": [1]}'}], ids=str)
def test_a_record_that_says_nothing_is_not_another(facts: dict[str, str], tuned: Path) -> None:
    assert adapters_apart(open_record(tuned), Record("a port's", facts, {})) is None
