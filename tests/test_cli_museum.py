"""`pg2ref break` and the diagnosis of `pg2ref compare`, as they are typed."""

import json
import re
from pathlib import Path

import museum
import numpy as np
import pytest
from cli_runner import Run, make_run

import pg2ref
from pg2ref.generation.given import divergence
from pg2ref.model import paligemma
from pg2ref.parity.bugs.collection import BUGS
from pg2ref.parity.effect import effect_of, prepare_run
from pg2ref.recording.record import record

FAST = ("--backend", "numpy", "-n", "4")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return make_run(capsys, monkeypatch)


def test_the_list_names_every_bug_with_its_links(run: Run) -> None:
    found = run("break", "--list")
    assert found.code == 0
    lines = found.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(BUGS)
    assert "    https://github.com/vllm-project/vllm/issues/52667" in lines
    listed = json.loads(run("break", "--list", "--json").out)
    assert listed["schema"] == "pg2ref/break/1"
    assert [bug["name"] for bug in listed["bugs"]] == list(BUGS)


def test_break_shows_both_answers_and_each_place(run: Run, small_folder: Path) -> None:
    found = run("break", museum.SCENE, "--bug", "causal-prefix", "-m", small_folder, *FAST)
    assert found.code == 0
    right, broken = (line for line in found.out.splitlines() if line.startswith(("right:", "broken:")))
    assert right.split(maxsplit=1)[1] != broken.split(maxsplit=1)[1]
    assert "first change: text/layer_00/" in found.out
    assert len(found.out.split("likeliest, right | broken\n")[1].splitlines()) == 4


def test_break_as_json_says_what_the_models_compute(run: Run, small_folder: Path) -> None:
    """The numbers of the first place, computed here from both models."""
    found = json.loads(run("break", museum.SCENE, "--bug", "no-window", "-m", small_folder, *FAST, "--json").out)
    right = prepare_run(pg2ref.load(small_folder, backend="numpy"), [museum.SCENE], "caption en")
    logits = []
    for one in (right, BUGS["no-window"].inject(right)):
        embeddings = paligemma.encode_images(one.model, one.pixel_values)
        cache = one.model.empty_cache(64, len(one.prompt_ids))
        paligemma.prefill(one.model, embeddings, one.prompt_ids, cache)
        logits.append(paligemma.step(one.model, [found["right"]["token_ids"][0]], [cache])[0])
    second = found["places"][1]
    assert second["kl"] == pytest.approx(divergence(*logits), rel=1e-6)
    assert second["kl"] > 0
    assert second["max_change"] == pytest.approx(np.abs(logits[1] - logits[0]).max(), rel=1e-6)
    assert second["right"][0]["token_id"] == int(logits[0].argmax()) == found["right"]["token_ids"][1]
    assert second["broken"][0]["token_id"] == int(logits[1].argmax())
    assert found["places"][0]["kl"] == 0  # the window shows behind the prompt alone
    assert found["bug"]["seen"]


def test_a_bug_that_changes_nothing_is_said_to(run: Run, small_folder: Path, tmp_path: Path) -> None:
    """An image of the model's own size is not resized at all."""
    from cli_runner import write_picture

    picture = write_picture(tmp_path / "small.png", (56, 56))
    found = run("break", picture, "--bug", "no-antialias", "-m", small_folder, *FAST)
    assert found.code == 0
    assert "This model and input are the same with it and without." in found.out


@pytest.mark.parametrize("name", ["no-window", "layers-swapped"])
def test_a_bug_that_shows_in_steps_alone_is_no_bug_without_effect(run: Run, small_folder: Path, name: str) -> None:
    found = run("break", museum.SCENE, "--bug", name, "-m", small_folder, *FAST)
    assert "This model and input are the same" not in found.out
    assert "first change: step_001/text/layer_0" in found.out
    assert len(found.out.split("likeliest, right | broken\n")[1].splitlines()) == 4


def test_a_bug_of_the_prompt_changes_its_shape(small_folder: Path) -> None:
    right = prepare_run(pg2ref.load(small_folder, backend="numpy"), [museum.SCENE], "caption en")
    effect = effect_of(BUGS["missing-bos"], right, 2)
    assert effect.first_change is not None
    assert (effect.first_change.stage, effect.first_change.nrmse) == ("prefix/embeddings", None)
    assert len(effect.places) == 2


def test_two_images_and_kernels_go_too(run: Run, small_folder: Path) -> None:
    for name in ("gelu-erf", "cap-after-mask", "gqa-tiled"):
        arguments = (museum.SCENE, museum.SCENE, "--bug", name, "-m", small_folder, "-n", "2", "--json")
        places = json.loads(run("break", *arguments).out)["places"]
        assert all(place["kl"] > 0 for place in places)


def test_the_example_of_the_readme_runs(run: Run, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    lines = re.findall(r"^pg2ref (break .*)$", (root / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        found = run(*(small_folder if word == "build/small" else word for word in line.split()))
        assert found.code == 0
        assert "causal-prefix" in found.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((museum.SCENE,), "no bug given: add --bug NAME, or --list"),
        ((museum.SCENE, "--bug", "nothing"), "bug 'nothing' is not one of bgr, no-antialias"),
        (("--bug", "bgr"), "no image given"),
        ((museum.SCENE, "--bug", "bgr"), "no model given"),
    ],
)
def test_what_break_cannot_do_is_refused(run: Run, arguments: tuple[object, ...], message: str) -> None:
    found = run("break", *arguments)
    assert found.code == 2
    assert message in found.err


@pytest.fixture(scope="module")
def traces(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference, the same again, a run with a bug, one with an unknown mistake, and one whose image came in wrong."""
    folder = tmp_path_factory.mktemp("traces")
    model = pg2ref.load(small_folder, precision="f32", backend="numpy")
    right = prepare_run(model, [museum.SCENE], "ocr")
    changes = {
        "reference": right,
        "right": right,
        "gqa": BUGS["gqa-tiled"].inject(right),
        "noise": museum.noisy_weight(right),
    }
    for name, changed in changes.items():
        model.numbers = changed.model
        record(model, [museum.SCENE], "ocr", folder / name, points=lambda stage: True)
    stages = museum.stages_of(BUGS["no-antialias"].inject(right))
    np.savez(folder / "resized.npz", **stages)
    return folder


def test_compare_names_the_bug(run: Run, traces: Path, small_folder: Path) -> None:
    found = run("compare", traces / "reference", traces / "gqa", "-m", small_folder)
    assert found.code == 1
    assert "diagnosis: gqa-tiled, at text/layer_00/attention_" in found.out
    assert "https://github.com/onnx/onnx/issues/7274" in found.out
    as_json = json.loads(run("compare", traces / "reference", traces / "gqa", "-m", small_folder, "--json").out)
    assert [cause["bug"] for cause in as_json["diagnosis"]["causes"]] == ["gqa-tiled"]


def test_compare_does_not_guess(run: Run, traces: Path, small_folder: Path) -> None:
    found = run("compare", traces / "reference", traces / "noise", "-m", small_folder)
    assert found.code == 1
    assert "diagnosis: unknown, at text/layer_01/gated_gelu" in found.out


def test_compare_has_nothing_to_diagnose_where_all_is_close(run: Run, traces: Path, small_folder: Path) -> None:
    found = run("compare", traces / "reference", traces / "right", "-m", small_folder)
    assert found.code == 0
    assert "diagnosis" not in found.out


def test_compare_names_what_it_can_without_a_model(run: Run, traces: Path) -> None:
    assert "diagnosis: gqa-tiled" in run("compare", traces / "reference", traces / "gqa").out
    found = run("compare", traces / "reference", traces / "noise")
    assert found.code == 1
    assert "diagnosis: from the two records alone; more can be told with -m MODEL" in found.out


def test_compare_sees_how_an_image_was_resized(run: Run, traces: Path, small_folder: Path) -> None:
    arguments = ("compare", traces / "reference", traces / "resized.npz", "-m", small_folder)
    assert "diagnosis: unknown, at pixel_values" in run(*arguments).out
    found = run(*arguments, "--image", museum.SCENE)
    assert found.code == 1
    assert "diagnosis: no-antialias, at pixel_values" in found.out


def test_an_image_without_a_model_is_refused(run: Run, traces: Path) -> None:
    found = run("compare", traces / "reference", traces / "gqa", "--image", museum.SCENE)
    assert found.code == 2
    assert "--image is for a diagnosis, which needs the model: add -m MODEL" in found.err
