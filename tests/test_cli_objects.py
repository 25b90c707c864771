"""`pg2ref detect`, `pg2ref segment`, and the pictures that `generate` writes too."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import Run, write_picture
from PIL import Image
from random_mask_decoder import random_arrays

import pg2ref
from pg2ref.errors import CheckpointError, UsageError
from pg2ref.generation.generate import TokenEvent
from pg2ref.inputs.tokenizer import Tokenizer
from pg2ref.outputs.rle import decode_mask

BOX = "<loc0000><loc0341><loc0682><loc1023>"  # of 60 x 40: 20, 0, 60, 26.7
CODES = "".join(f"<seg{code:03d}>" for code in range(16))
PIXELS = "20.0\t0.0\t60.0\t26.7"
Say = Callable[[str], None]


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    np.savez(tmp_path / "vae.npz", **random_arrays(6, 5, 7, (6, 5, 3, 2)))
    return tmp_path / "vae.npz"


@pytest.fixture
def say(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Put an answer into the model's mouth: every token with probability 1/2, an end of text behind them."""
    tokenizer = Tokenizer.load(small_folder, 2352)

    def set_answer(text: str) -> None:
        ids = [*tokenizer.tokenize(text), tokenizer.eos_id]

        def generate(*arguments: Any, max_new_tokens: int, **options: Any) -> Iterator[TokenEvent]:
            for token_id in ids[:max_new_tokens]:
                is_last = token_id == tokenizer.eos_id
                yield TokenEvent(token_id, float(np.log(0.5)), (), 0.1, "stop" if is_last else None)
            if len(ids) > max_new_tokens:
                yield TokenEvent(ids[max_new_tokens], 0.0, (), 0.1, "length")

        monkeypatch.setattr("pg2ref.answer.generate", generate)

    return set_answer


def test_detect_prints_a_line_an_object(run: Run, say: Say, picture: Path, small_folder: Path) -> None:
    say(f"{BOX} cat ; {BOX} red  dog")
    ran = run("detect", picture, "cat", "red dog", "-m", small_folder)
    assert ran == (0, f"cat\t{PIXELS}\t0.500\nred dog\t{PIXELS}\t0.500\n", "")


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_the_prompt_is_written_for_you(run: Run, say: Say, picture: Path, small_folder: Path, task: str) -> None:
    say("none")
    ran = run(task, picture, "cat", "red dog", "-m", small_folder, "--json", "-q")
    result = json.loads(ran.out)
    assert result["input"]["prompt"] == f"{task} cat ; red dog"
    assert (result["objects"], result["problems"], ran.err) == ([], [], "")


def test_json_has_the_documented_objects(run: Run, say: Say, picture: Path, small_folder: Path, vae: Path) -> None:
    say(f"{BOX}{CODES} cat ; <loc0001> dog")
    ran = run("segment", picture, "cat", "-m", small_folder, "--vae", vae, "--json", "-q")
    result = json.loads(ran.out)
    (one,) = result["objects"]
    assert set(one) == {"label", "box_xyxy", "box_loc_yxyx", "score", "mask"}
    assert (one["label"], one["box_loc_yxyx"]) == ("cat", [0, 341, 682, 1023])
    assert one["score"] == pytest.approx(0.5)
    assert one["mask"]["size"] == [40, 60]
    assert decode_mask(one["mask"]).any()
    assert len(result["problems"]) == 1
    assert result["policy"]["loc_scale"] == 1023


def test_pictures_are_written(run: Run, say: Say, picture: Path, small_folder: Path, vae: Path, tmp_path: Path) -> None:
    say(f"{BOX}{CODES} cat/../x ; {BOX} no mask ; {BOX}{CODES} кошка")
    arguments = ("-m", small_folder, "--vae", vae, "--overlay", tmp_path / "over.png", "--masks", tmp_path / "masks")
    ran = run("segment", picture, "cat", *arguments)
    assert ran.code == 0
    assert ran.err == "pg2ref: warning: 1 of 3 objects came without a mask\n"
    with Image.open(tmp_path / "over.png") as overlay, Image.open(picture) as original:
        assert overlay.size == (60, 40)
        assert (np.asarray(overlay) != np.asarray(original)).any()
    assert sorted(os.listdir(tmp_path / "masks")) == ["00-cat-x.png", "02-кошка.png"]
    with Image.open(tmp_path / "masks" / "00-cat-x.png") as mask:
        assert (mask.mode, mask.size) == ("1", (60, 40))
        assert not np.asarray(mask)[27:].any()
    assert sorted(os.listdir(tmp_path)) == ["masks", "over.png", "picture.png", "vae.npz"]


def test_generate_writes_them_too(run: Run, say: Say, picture: Path, small_folder: Path, tmp_path: Path) -> None:
    say(f"{BOX} cat ; <loc0001>")
    over = tmp_path / "over.png"
    ran = run("generate", picture, "-m", small_folder, "-p", "detect cat", "--overlay", over)
    assert (ran.code, ran.out) == (0, f"{BOX} cat ; <loc0001>\n")
    assert ran.err.startswith("pg2ref: warning: a box needs 4 locations, got 1")
    assert over.exists()
    plain = run("generate", picture, "-m", small_folder, "-p", "detect cat")
    assert plain == (0, f"{BOX} cat ; <loc0001>\n", "")


def test_a_decoder_in_the_folder_is_found(run: Run, say: Say, picture: Path, small_folder: Path, vae: Path) -> None:
    say(f"{BOX}{CODES} cat")
    without = run("segment", picture, "cat", "-m", small_folder)
    assert (without.code, without.out) == (0, f"cat\t{PIXELS}\t0.500\n")
    assert "--vae" in without.err
    folder = shutil.copytree(small_folder, vae.parent / "model")
    shutil.copy(vae, folder / "vae-oid.npz")
    assert run("segment", picture, "cat", "-m", folder).err == ""


def test_loc_scale(run: Run, say: Say, picture: Path, small_folder: Path) -> None:
    say("<loc0256><loc0256><loc0512><loc0512> cat")
    ran = run("detect", picture, "cat", "-m", small_folder, "--loc-scale", 1024)
    assert ran.out == "cat\t15.0\t10.0\t30.0\t20.0\t0.500\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("none", "no object found, the model answered 'none'"),
        (f"{BOX} cat ; {BOX} dog", "cut off after 7 tokens: raise -n"),
        ("<loc0010><loc0010><loc0010><loc0010> cat", "no extent"),
    ],
)
def test_what_is_missing_is_said(run: Run, say: Say, picture: Path, small_folder: Path, text: str, says: str) -> None:
    say(text)
    ran = run("detect", picture, "cat", "-m", small_folder, "-n", 6)
    assert ran.code == 0
    assert says in ran.err
    assert run("detect", picture, "cat", "-m", small_folder, "-n", 6, "-q").err == ""


def test_the_image_may_come_from_stdin(run: Run, say: Say, picture: Path, small_folder: Path) -> None:
    say(f"{BOX} cat")
    assert run("detect", "-", "cat", "-m", small_folder, stdin=picture.read_bytes()).out.startswith("cat\t20.0")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["cat", "--overlay", "nowhere/a.png"], 2),
        (["cat", "--overlay", "."], 2),
        (["cat", "--masks", "nowhere/masks"], 2),
        (["cat", "--masks", "picture.png"], 2),
        (["cat", "--vae", "nowhere.npz"], 5),
        (["cat", "--vae", "picture.png"], 5),
        (["cat", "--loc-scale", "1000"], 2),
        (["cat", "-n", "0"], 2),
        ([], 2),
    ],
)
def test_refusals(
    run: Run,
    say: Say,
    picture: Path,
    small_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
) -> None:
    say("none")
    monkeypatch.chdir(picture.parent)
    ran = run("segment", "picture.png", *arguments, "-m", small_folder)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (code, "", 1)
    assert os.listdir(".") == ["picture.png"]


def test_from_python(say: Say, picture: Path, small_folder: Path, vae: Path) -> None:
    say(f"{BOX}{CODES} cat")
    result = pg2ref.load(small_folder, backend="numpy", vae=vae).generate(picture, "segment cat")
    (one,) = result.objects
    assert one.label == "cat"
    assert one.box_xyxy_px == pytest.approx((20, 0, 60, 40 * 682 / 1023))
    assert one.mask_YX is not None
    assert one.mask_YX.shape == (40, 60)
    assert result.overlay().size == (60, 40)
    assert (np.asarray(result.overlay()) != np.asarray(result.picture)).any()
    assert json.loads(result.to_json())["objects"] == [json.loads(json.dumps(one.to_dict()))]
    again = pg2ref.load(small_folder, backend="numpy", loc_scale=1024, vae=vae).generate(picture, "segment cat")
    assert again.objects[0].box_xyxy_px[0] == 341 / 1024 * 60


def test_boxes_are_those_of_the_first_image(say: Say, picture: Path, small_folder: Path, tmp_path: Path) -> None:
    say(f"{BOX} cat")
    other = write_picture(tmp_path / "other.png", (20, 30))
    result = pg2ref.load(small_folder, backend="numpy").generate([other, picture], "detect cat")
    assert result.overlay().size == (20, 30)
    assert result.objects[0].box_xyxy_px[2] == 20


def test_a_decoder_that_is_not_there(small_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no file"):
        pg2ref.load(small_folder, vae=tmp_path / "none.npz")


def test_supervision_is_asked_for_by_name(
    say: Say, picture: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(f"{BOX} cat")
    result = pg2ref.load(small_folder, backend="numpy").generate(picture, "detect cat")
    monkeypatch.setitem(sys.modules, "supervision", None)
    monkeypatch.delitem(sys.modules, "pg2ref.outputs.supervision_detections", raising=False)
    with pytest.raises(UsageError, match="pip install supervision"):
        result.to_supervision()
