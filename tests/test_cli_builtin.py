"""The command line without -m, and `generate` without an image: what a visitor sees first."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import Run, make_run, run_process, write_picture
from PIL import Image

from pg2ref.demo.scene import draw_scene
from pg2ref.demo.truth import truth_of

NOTE = "pg2ref: pg2ref-shapes answers, the built-in model for synthetic scenes, not Google's; for photographs `pg2ref "


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return make_run(capsys, monkeypatch)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    Image.fromarray(draw_scene(3).pixels_YXC).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def test_the_first_run(tmp_path: Path) -> None:
    """In a process of its own, in an empty folder; the limit is wide, as this machine may be busy."""
    started = time.perf_counter()
    ran = run_process("generate", cwd=tmp_path)
    assert time.perf_counter() - started < 30
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    assert lines[0] == "caption en"
    assert lines[2] == "detect orange star ; yellow heart"
    assert lines[1].startswith("a")
    said = ran.stderr.splitlines()
    assert said[0].startswith(NOTE)
    drew = "pg2ref: no image given, drew scene 0, an orange star and a yellow heart: "
    assert said[1] == f"{drew}{tmp_path}/pg2ref-scene.png"
    assert said[-1] == f"pg2ref: what it found: {tmp_path}/pg2ref-found.png"
    assert {path.name for path in tmp_path.iterdir()} == {"pg2ref-scene.png", "pg2ref-found.png"}
    drawn, found = (np.asarray(Image.open(tmp_path / name)) for name in ("pg2ref-scene.png", "pg2ref-found.png"))
    assert (drawn == draw_scene(0).pixels_YXC).all()
    assert drawn.shape == found.shape
    assert (drawn != found).any()
    for line in lines[3:]:
        label, *numbers = line.split("\t")
        assert label in ("orange star", "yellow heart")
        assert len([float(number) for number in numbers]) == 5


def test_the_first_run_as_json(run: Run, tmp_path: Path) -> None:
    ran = run("generate", "--json", "-q", "--seed", 3)
    assert (ran.code, ran.err) == (0, "")
    said: dict[str, Any] = json.loads(ran.out)
    assert set(said) == {"schema", "seed", "scene", "overlay", "truth", "results"}
    assert (said["schema"], said["seed"]) == ("pg2ref/scene/1", 3)
    assert said["truth"] == truth_of(draw_scene(3))
    assert os.path.isfile(said["scene"])
    assert os.path.isfile(said["overlay"])
    assert [result["input"]["prompt"].split()[0] for result in said["results"]] == ["caption", "detect"]
    for result in said["results"]:
        assert result["model"]["builtin"] is True
        assert result["model"]["id"] == "pg2ref-shapes"
        assert result["warnings"] == []


def test_a_question_about_a_drawn_scene(run: Run, tmp_path: Path) -> None:
    ran = run("generate", "--seed", 4, "-p", "answer en what colour is the star?", "-v")
    assert ran.code == 0
    assert ran.out == "answer en what colour is the star?\nyellow\n"
    assert not (tmp_path / "pg2ref-found.png").exists()  # nothing was looked for
    assert "computed in f32 by numpy" in ran.err
    assert "vision " in ran.err
    piped = run("generate", "--seed", 4, "-p", "-", "-q", stdin=b"answer en what colour is the star?\n")
    assert (piped.out, piped.err) == (ran.out, "")
    tokens = run("generate", "--seed", 4, "-p", "answer en what colour is the star?", "-q", "--logprobs", 2)
    assert "'yellow'" in tokens.out.splitlines()[1]


def test_masks_of_a_drawn_scene(run: Run, tmp_path: Path) -> None:
    ran = run("generate", "--seed", 3, "-p", "segment green ring", "--masks", "masks", "--overlay", "boxes.png", "-q")
    assert ran.code == 0
    assert np.asarray(Image.open(tmp_path / "boxes.png")).shape == (224, 224, 3)
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["00-green-ring.png"]


def test_a_folder_that_may_not_be_written_is_left_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    (tmp_path / "elsewhere").mkdir()
    may_write = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != os.curdir and may_write(path, mode))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    ran = run("generate", "-p", "ocr")
    assert f"{tmp_path}/elsewhere/pg2ref-scene.png" in ran.err
    assert not (tmp_path / "pg2ref-scene.png").exists()


def test_another_model_wants_an_image(run: Run, small_folder: Path) -> None:
    ran = run("generate", "-m", small_folder)
    assert (ran.code, ran.out) == (2, "")
    assert "no image given: name one" in ran.err


def test_without_a_model_the_built_in_one_answers(run: Run, scene: Path, small_folder: Path) -> None:
    for command in (("generate", scene), ("detect", scene, "green ring"), ("segment", scene, "green ring")):
        ran = run(*command)
        assert ran.code == 0
        assert ran.err.splitlines()[0].startswith(NOTE)
        assert ran.err.count("pg2ref-shapes") == 1
        assert json.loads(run(*command, "--json", "-q").out)["model"]["builtin"] is True
        assert run(*command, "-q").err == ""
    other = run("generate", scene, "-m", small_folder, "-n", 2, "--json")
    assert (json.loads(other.out)["model"]["builtin"], other.err) == (False, "")


def test_its_stages_are_recorded(run: Run, scene: Path) -> None:
    ran = run("trace", scene, "-o", "run.safetensors", "--json")
    assert ran.code == 0
    assert ran.err.startswith(NOTE)
    assert json.loads(ran.out)["precision"] == "f32"
    assert run("trace", scene, "-o", "run.safetensors", "-q").err == ""


def test_objects_with_masks(run: Run, scene: Path) -> None:
    ran = run("segment", scene, "green ring", "--json", "-q")
    (ring,) = json.loads(ran.out)["objects"]
    assert ring["label"] == "green ring"
    assert ring["mask"]["size"] == [224, 224]


def test_a_picture_it_was_not_made_for(run: Run, tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "colourful.png")
    ran = run("generate", picture, "--json")
    (warning,) = json.loads(ran.out)["warnings"]
    assert "looks unlike the synthetic scenes" in warning
    assert ran.err.splitlines()[-1] == f"pg2ref: warning: {warning}"
    assert "looks unlike" in run("detect", picture, "red circle").err
    assert run("generate", picture, "-q").err == ""


def test_tools_that_name_no_model_by_themselves(run: Run) -> None:
    assert "built-in one" in run("inspect").err
    described = run("inspect", "pg2ref-shapes")
    assert described.code == 0
    assert "2048" not in run("tokenize", "ocr", "-m", "pg2ref-shapes").err
