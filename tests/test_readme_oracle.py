"""The README's example of a trace and a comparison does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runner import PG2REF

import pg2ref
from pg2ref.parity.records import open_record

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder in which the example was run, and what its commands printed."""
    block = re.search(r"<!-- oracle:begin -->\n```sh\n(.*?)```", README, flags=re.DOTALL)
    assert block is not None
    folder = tmp_path_factory.mktemp("readme")
    for name in ("tools", "tests"):
        (folder / name).symlink_to(ROOT / name)
    printed = []
    for line in block[1].splitlines():
        program, *arguments = line.split()
        command = PG2REF if program == "pg2ref" else [sys.executable]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, env=environment
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    return folder, printed


def test_the_example_compares_and_is_close(ran: tuple[Path, list[str]]) -> None:
    lines = ran[1][-1].splitlines()
    assert lines[0] == "build/port.safetensors against build/truth.safetensors, noise of bf16"
    assert lines[-2] == "97 of 97 stages are close"
    median = re.fullmatch(r"noise ratio: median ([\d.]+), largest ([\d.]+)", lines[-1])
    assert median is not None
    assert 0.3 < float(median[1]) < float(median[2]) < 2


def test_the_test_of_a_port_passes_and_fails(ran: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's test function, with a port that is right, and one that is not."""
    block = next(block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "my_port" in block)
    monkeypatch.chdir(ran[0])
    os.replace("build/truth.safetensors", "golden.safetensors")
    right = open_record(Path("golden.safetensors")).stages["text/layer_00/out"].read().astype(np.float32)
    for port, is_right in ((right, True), (right + np.float32(0.01), False)):
        scope = {"my_port": lambda pixels, ids, port=port: port, "pixels": None, "ids": None}
        exec(compile(block, "README.md", "exec"), scope)
        if is_right:
            scope["test_my_port"]()
        else:
            with pytest.raises(AssertionError, match="1 of 1 stages diverge"):
                scope["test_my_port"]()


def test_traces_from_python(ran: tuple[Path, list[str]], tmp_path: Path) -> None:
    model = pg2ref.load(ran[0] / "build" / "small", precision="f32", backend="numpy")
    trace = model.trace(ROOT / "tests" / "data" / "scene.png", "caption en")
    trace.save(tmp_path / "run.safetensors")
    assert open_record(tmp_path / "run.safetensors").stages["text/layer_00/query"].shape[1:] == (6, 16)
