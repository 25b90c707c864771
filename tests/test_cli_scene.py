"""`pg2ref scene`: picture and truth, whole or not at all."""

import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_runner import PG2REF, Run
from PIL import Image

from pg2ref.demo.scene import draw_scene
from pg2ref.demo.truth import truth_of


def test_picture_and_truth(run: Run, tmp_path: Path) -> None:
    picture, truth = tmp_path / "scene.png", tmp_path / "scene.json"
    assert run("scene", "--seed", 7, "-o", picture, "--truth", truth) == (0, "", "")
    scene = draw_scene(7)
    with Image.open(picture) as image:
        assert (np.asarray(image) == scene.pixels_YXC).all()
        assert image.size == (224, 224)
    assert json.loads(truth.read_text()) == truth_of(scene)
    assert sorted(os.listdir(tmp_path)) == ["scene.json", "scene.png"]


def test_size_and_stdout(run: Run, tmp_path: Path) -> None:
    ran = run("scene", "--seed", 3, "--size", 64, "-o", tmp_path / "a.png", "--truth", "-")
    assert json.loads(ran.out)["size"] == [64, 64]
    command = [*PG2REF, "scene", "--size", "64", "-o", "-"]
    drawn = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=True)
    with Image.open(io.BytesIO(drawn.stdout)) as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "nowhere/a.png"],
        ["-o", "."],
        ["-o", ""],
        ["-o", "a.png", "--truth", "nowhere/a.json"],
        ["-o", "a", "--truth", "a"],
        ["--size", "31"],
        ["--seed", "-1"],
        ["--seed", "x"],
    ],
)
def test_refusals_leave_nothing_behind(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("scene", *arguments)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_finished_leaves_the_old_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "scene.png"
    picture.write_text("old")

    def refuse(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    ran = run("scene", "-o", picture)
    assert ran.code == 1
    assert "No space left" in ran.err
    assert picture.read_text() == "old"
    assert os.listdir(tmp_path) == ["scene.png"]


def test_links_and_devices_stay_what_they_are(run: Run, tmp_path: Path) -> None:
    (tmp_path / "real.png").write_text("old")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    assert run("scene", "--size", 32, "-o", tmp_path / "link.png", "--truth", os.devnull).code == 0
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes()[1:4] == b"PNG"
    assert not os.path.isfile(os.devnull)
