"""tools/size_report.py: its numbers are those of the process that it runs."""

import json
import sys
from pathlib import Path

import pytest
import size_report
from click.testing import CliRunner

SCENE = Path(__file__).parent / "data" / "scene.png"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_peaks_and_seconds(small_folder: Path) -> None:
    arguments = [str(small_folder), str(SCENE), "-n", "3", "--json", "--", "--backend", "numpy"]
    ran = CliRunner().invoke(size_report.main, arguments)
    assert ran.exit_code == 0, ran.output
    facts = json.loads(ran.output)
    peaks, timing = facts["peak_bytes"], facts["timing"]
    assert facts["stored_bytes"] == (small_folder / "model.safetensors").stat().st_size
    assert facts["model"]["backend"] == "numpy"
    assert 1 <= facts["tokens"] <= 3
    assert 10e6 < peaks["anonymous"] < peaks["resident"] < 1e9
    assert 10e6 < peaks["mapped"] < peaks["resident"] <= peaks["anonymous"] + peaks["mapped"]
    spent = sum(timing[f"{phase}_s"] for phase in ("load", "vision", "prefill", "decode"))
    assert spent < facts["process_s"]


def test_a_page_for_people(small_folder: Path) -> None:
    ran = CliRunner().invoke(size_report.main, [str(small_folder), str(SCENE), "-n", "2", "--", "--backend", "numpy"])
    first, second, third = ran.output.splitlines()
    assert first == f"{small_folder}: 0.00 GB bf16, computed in f32"
    assert second.startswith("peaks: ")
    assert "MB anonymous" in second
    assert third.startswith("seconds: load ")


def test_a_run_that_fails_says_so(small_folder: Path) -> None:
    ran = CliRunner().invoke(size_report.main, [str(small_folder), str(SCENE), "--", "--precision", "int8"])
    assert ran.exit_code == 2
