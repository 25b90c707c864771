"""The page for porters, followed to the letter by a port of the vision tower in loops, which has one mistake."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import portable_numbers
import pytest
import siglip_port
from safetensors import safe_open

from pg2ref.arrays import bf16_to_f32
from pg2ref.checkpoint.safetensors_file import read_tensors
from pg2ref.demo import builtin

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "pg2ref" / "parity" / "PORTING.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(.*?)\n```", PAGE, flags=re.DOTALL)
KIT, WEIGHTS, PORT, COMPARE, DIAGNOSE = COMMANDS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a porter has it: the tools of a checkout, and the port."""
    folder = tmp_path_factory.mktemp("porter")
    (folder / "tools").symlink_to(ROOT / "tools")
    port = folder / "my_port"
    port.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests" / "siglip_port.py"}" "$@"\n')
    port.chmod(0o755)
    for command in (KIT, PORT):
        assert run(command, folder).returncode == 0
    return folder


def run(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A line of the page, with this Python for `python` and `pg2ref`."""
    program = f'"{sys.executable}" -m pg2ref' if command.startswith("pg2ref") else f'"{sys.executable}"'
    typed = re.sub(r"^(python|pg2ref)\b", program, command)
    return subprocess.run(typed, shell=True, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_weights_are_those_of_the_checkpoint(place: Path) -> None:
    assert run(WEIGHTS, place).returncode == 0
    made = read_tensors(place / "model.safetensors").tensors
    stored = read_tensors(place / "kit" / "small" / "checkpoint" / "model.safetensors").tensors
    assert set(made) == set(stored)
    for name, tensor in stored.items():
        np.testing.assert_array_equal(made[name], tensor)


def test_a_damaged_recipe_is_noticed(place: Path, tmp_path: Path) -> None:
    text = (place / "kit" / "small" / "weights.json").read_text()
    (tmp_path / "weights.json").write_text(text.replace('"seed": 5', '"seed": 6'))
    found = run(f"python kit/portable_numbers.py {tmp_path / 'weights.json'} {tmp_path / 'model'}", place)
    assert found.returncode == 1
    assert "the digest is" in found.stderr


def test_the_numbers_are_nearly_normal() -> None:
    """And each is what the loops of the port make of the recipe."""
    bits = np.concatenate(list(portable_numbers.portable_bits("a name", 100_000, 0.5, 2.0, 7)))
    values = bf16_to_f32(bits).astype(np.float64)
    assert abs(values.mean() - 0.5) < 4 * 2 / 100_000**0.5
    assert abs(values.std() - 2) < 0.02
    assert (np.abs(values - 0.5) > 4).mean() == pytest.approx(0.0455, abs=0.01)


def test_the_port_reads_the_recipe_as_the_kit_means_it(place: Path) -> None:
    assert (place / "stages" / "vision" / "layer_02" / "out.npy").exists()  # it checks every digest


def test_compare_names_the_first_divergence(place: Path) -> None:
    found = run(COMPARE, place)
    assert found.returncode == 1, found.stderr
    assert "first divergence: vision/layer_00/gelu" in found.stdout
    assert "5 of 18 stages are close" in found.stdout


def test_the_diagnosis_names_the_mistake(place: Path) -> None:
    found = run(DIAGNOSE, place)
    assert found.returncode == 1, found.stderr
    assert "diagnosis: gelu-erf, at vision/layer_00/gelu" in found.stdout


def test_the_port_without_its_mistake_is_close(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def right(x: float) -> float:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    monkeypatch.setattr(siglip_port, "gelu", right)
    siglip_port.main(place / "kit" / "small", tmp_path / "stages")
    found = run(COMPARE.replace("stages", str(tmp_path / "stages")), place)
    assert found.returncode == 0, found.stdout
    assert "18 of 18 stages are close" in found.stdout


def test_the_kit_says_who_reads_whom(place: Path) -> None:
    """Drawn from the two ends: the prompt reads itself, an answer backwards, nine keys in a sliding layer."""
    with safe_open(place / "kit" / "small" / "inputs.safetensors", "np") as stored:
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    first, last = arrays["mask/sliding/first_key"], arrays["mask/sliding/last_key"]
    prompt = 25
    assert (len(first), len(last)) == (29, 29)
    assert (first[:prompt] == 0).all()
    assert (last[:prompt] == prompt - 1).all()
    assert (last[prompt:] == np.arange(prompt, 29)).all()
    assert (last[prompt:] - first[prompt:] == 8).all()
    assert (arrays["mask/full/first_key"] == 0).all()
    assert arrays["rotation/cos"].shape == (29, 8)
    assert arrays["rotation/cos"][2, 0] == np.float32(np.cos(3.0))  # positions from 1
    assert arrays["pixels/levels"].shape == (3, 56, 56)


def test_the_kit_is_small_enough_to_commit(place: Path) -> None:
    entry = place / "kit" / "small"
    assert sum(path.stat().st_size for path in entry.iterdir() if path.is_file()) < 500_000
    assert (entry / "golden.safetensors").stat().st_size < 1_000_000


def test_the_built_in_model_has_an_entry(place: Path) -> None:
    """Its weights are those of the package, told by their digest, and its own trace in float32 is close."""
    assert run("python tools/make_golden_kit.py kit --model pg2ref-shapes", place).returncode == 0
    entry = place / "kit" / "pg2ref-shapes"
    weights = (builtin.FOLDER / "model.safetensors").read_bytes()
    digests = {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert json.loads((entry / "weights.json").read_text()) == {"recipe": None, "files": digests}
    prompt = json.loads((entry / "inputs.json").read_text())["prompt"]
    assert run(f'pg2ref trace kit/scene.png -p "{prompt}" -o run.safetensors', place).returncode == 0
    found = run("pg2ref compare kit/pg2ref-shapes/golden.safetensors run.safetensors --json", place)
    assert found.returncode == 0, found.stdout
    assert {"logits", "text/layer_00/out", "vision/layer_00/out"} < {
        stage["stage"] for stage in json.loads(found.stdout)["stages"]
    }


def test_the_ci_of_the_page_runs_its_own_commands(place: Path) -> None:
    """What it requires is in the kit, and a record of pixels alone has not got it."""
    (workflow,) = re.findall(r"```yaml\n(.*?)\n```", PAGE, flags=re.DOTALL)
    install, port, compare = re.findall(r"- run: (.*)", workflow)
    assert (install, port) == ("pip install pg2ref", PORT)
    assert compare.startswith(f"{COMPARE} --require ")
    golden = COMPARE.split()[2]
    assert run(compare.replace(" stages ", f" {golden} "), place).returncode == 0
    np.savez(place / "pixels.npz", pixel_values=np.zeros(3))
    assert run(compare.replace(" stages ", " pixels.npz "), place).returncode == 2


def test_the_page_names_stages_that_exist(place: Path) -> None:
    with safe_open(place / "kit" / "small" / "golden.safetensors", "np") as stored:
        points = stored.metadata()["points"]
    _, block = re.findall(r"```text\n(.*?)\n```", PAGE, flags=re.DOTALL)
    names = re.findall(r"[\w/]+", re.sub(r"\(.*?\)", "", block))
    assert len(names) > 12
    assert [name for name in names if f'"{name}"' not in points] == []
