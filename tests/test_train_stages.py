"""The three stages of training on a handful of scenes: resumable, and exported to what Transformers and pg2ref read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pg2ref

pytestmark = pytest.mark.parity

TINY = ["--batch-size", "3", "--validation", "6", "--log-every", "2"]
STAGES = {"vision": 4, "language": 4, "joint": 4}


def run_stage(stage: str, folder: Path, *options: object) -> list[dict[str, Any]]:
    """Run a stage in this process; its log."""
    import importlib

    command = importlib.import_module(f"train_{stage}").main
    command.main([str(folder), *TINY, *map(str, options)], standalone_mode=False)
    return [json.loads(line) for line in (folder / stage / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which all stages have run, with shards of 12 scenes."""
    torch = pytest.importorskip("torch")
    import mask_vae
    import scene_store

    folder = tmp_path_factory.mktemp("training")
    (folder / "mask_vae").mkdir()
    torch.manual_seed(0)
    mask_vae.export(mask_vae.MaskVae(), folder / "mask_vae" / "vae-oid.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_store, "SHARD", 12)
        for stage, steps in STAGES.items():
            run_stage(stage, folder, "--steps", steps)
        yield folder


def state(folder: Path, stage: str) -> dict[str, Any]:
    import torch

    loaded: dict[str, Any] = torch.load(folder / stage / "state.pt", weights_only=True)
    return loaded


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(stage: str, begun: Path, tmp_path: Path) -> None:
    import torch

    for needed in {"mask_vae", "scenes", "vision", "language"} - {stage}:
        (tmp_path / needed).symlink_to(begun / needed)
    steps = STAGES[stage]
    run_stage(stage, tmp_path, "--steps", steps, "--stop-after", steps // 2 + 1)
    log = run_stage(stage, tmp_path, "--steps", steps)
    assert [line["step"] for line in log] == [2, steps]
    whole, resumed = state(begun, stage), state(tmp_path, stage)
    assert whole["step"] == resumed["step"] == steps
    pairs = zip(leaves(whole["parts"]), leaves(resumed["parts"]), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def leaves(tree: Any) -> list[Any]:
    """Every tensor of a state."""
    if isinstance(tree, dict):
        return [leaf for branch in tree.values() for leaf in leaves(branch)]
    if isinstance(tree, list | tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree] if hasattr(tree, "shape") else []


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    from optimiser import rate_share

    shares = [rate_share(step, 100, warm_up=10, final_share=0.4) for step in range(100)]
    assert shares[0] == 0.1
    assert shares[9:60] == [1.0] * 51
    assert shares[80] == 0.5
    assert shares[99] == pytest.approx(1 / 40)


def test_a_perfect_reading_has_little_loss_and_full_marks() -> None:
    """Logits that say the truth, against a wrong colour, a shifted box and a missing word."""
    import torch
    from answer_scores import scores
    from language import Reading, answer_loss
    from questions import Question, collate
    from vocabulary import FIRST_LOCATION, VOCAB_SIZE

    from pg2ref.demo.tasks import Task

    box = [FIRST_LOCATION + edge for edge in (100, 200, 300, 400)]
    asked = [
        Question(Task("colour", "", ""), [2, 500, 108], [501, 1]),
        Question(Task("detect", "", ""), [2, 502, 108], [*box, 503, 504, 1]),
    ]
    batch = collate([(0, asked)])
    question_A, place_A = batch.is_answer_QT.nonzero(as_tuple=True)
    target_A = batch.ids_QT[question_A, place_A]
    assert target_A.tolist() == [501, 1, *box, 503, 504, 1]
    right = torch.nn.functional.one_hot(target_A, VOCAB_SIZE).float() * 25
    reading = Reading(right, target_A, question_A, torch.ones(len(target_A)))
    assert scores([(reading, batch)]) == {"colour": 1.0, "detect": 1.0, "box_iou": 1.0, "box_50": 1.0}
    shifted = right.roll(100, 1)
    wrong = reading._replace(logits_AV=torch.where((target_A >= FIRST_LOCATION)[:, None], shifted, right))
    measured = scores([(wrong, batch)])
    assert measured["detect"] == 1.0  # its words are right
    assert measured["box_iou"] == pytest.approx(1 / 7)
    assert answer_loss(wrong, 1.0) > answer_loss(reading, 1.0) + 1
    assert scores([(reading._replace(logits_AV=right.roll(1, 1)), batch)])["colour"] == 0


def test_gradients_of_scenes_are_summed_in_one_order() -> None:
    """Three questions a scene, cut among two threads in the middle of one: torch's own indexing gives several sums."""
    import torch
    from lessons import Lesson
    from questions import Question, collate

    from pg2ref.demo.tasks import Task

    batch = collate([(row, [Question(Task("ocr", "", ""), [2], [1])] * 3) for row in range(3)])
    lesson = Lesson(None, batch)  # type: ignore[arg-type]
    torch.manual_seed(0)
    of_scenes, weight = torch.randn(3, 64, 192, requires_grad=True), torch.randn(9, 64, 192)
    assert torch.equal(lesson.of_questions(of_scenes), of_scenes[batch.scene_Q])
    sums = set()
    for _ in range(200):
        of_scenes.grad = None
        (lesson.of_questions(of_scenes) * weight).sum().backward()
        sums.add(of_scenes.grad.numpy().tobytes())
    assert len(sums) == 1


def test_questions_ask_what_the_package_asks(begun: Path) -> None:
    import questions
    from mask_vae import read_exported
    from scene_store import draw
    from vocabulary import write_tokenizer

    from pg2ref.demo.drawing.dice import Dice
    from pg2ref.demo.scene import draw_scene
    from pg2ref.demo.tasks import draw_tasks

    vae = read_exported(begun / "mask_vae" / "vae-oid.npz")
    scenes = draw(range(30, 42), vae)
    tokenizer = write_tokenizer(begun / "model")
    for row, seed in enumerate(range(30, 42)):
        remembered = questions.remembered(scenes, row)
        drawn = draw_scene(seed, remembered.size_px)
        assert draw_tasks(remembered, Dice(1)) == draw_tasks(drawn, Dice(1))
    for batch in questions.batches(scenes, tokenizer, 3, 5, 6):
        kinds = {kind.split()[0] for kind in batch.kinds[:3]}
        assert kinds <= set(questions.LONG) or kinds <= set(questions.SHORT)
        assert batch.is_there_QT[batch.is_answer_QT].all()


def test_the_pixels_are_those_pg2ref_reads(begun: Path) -> None:
    from mask_vae import read_exported
    from patch_targets import pixel_tensor
    from scene_examples import example
    from scene_store import draw

    scenes = draw(range(50, 56), read_exported(begun / "mask_vae" / "vae-oid.npz"))
    for pixels, seed in zip(pixel_tensor(scenes).numpy(), range(50, 56), strict=True):
        np.testing.assert_allclose(pixels, example(seed, 112).pixel_values_CYX, atol=1e-6)


def test_what_is_exported_answers_alike_in_transformers_and_pg2ref(begun: Path, tmp_path: Path) -> None:
    import export_model
    import transformers_stages
    from click.testing import CliRunner
    from PIL import Image

    from pg2ref.demo.scene import draw_scene

    result = CliRunner().invoke(export_model.main, [str(begun), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 12e6
    theirs = transformers_stages.load_model(tmp_path / "out")
    ours = pg2ref.load(tmp_path / "out", precision="f32")
    for prompt in ("caption de", "ocr", "detect red circle ; blue star"):
        picture = Image.fromarray(draw_scene(3).pixels_YXC)
        prepared = ours.prepare(picture, prompt)
        expected = transformers_stages.generate(theirs, prepared.pixel_values[0][None], prepared.prompt_ids, 12)
        assert list(ours.generate(picture, prompt, max_new_tokens=12).token_ids) == expected


def test_what_is_kept_goes_on_where_it_was(begun: Path, tmp_path: Path) -> None:
    import click
    import kept_state
    import torch

    assert kept_state.keep(begun, tmp_path / "kept") == STAGES["joint"]
    kept_state.restore(tmp_path / "kept", tmp_path / "run")
    before, after = state(begun, "joint"), state(tmp_path / "run", "joint")
    assert after["step"] == 0
    for name, value in before["parts"]["joint"].items():
        assert torch.equal(after["parts"]["joint"][name], value.bfloat16().float()), name
    with pytest.raises(click.ClickException, match="holds a run already"):
        kept_state.restore(tmp_path / "kept", tmp_path / "run")
    (tmp_path / "run" / "scenes").symlink_to(begun / "scenes")
    log = run_stage("joint", tmp_path / "run", "--steps", 2)  # and not from stages 1 and 2, which are not there
    assert [line["step"] for line in log] == [2]


def test_a_run_that_goes_on_takes_the_rates_it_is_given() -> None:
    torch = pytest.importorskip("torch")
    from optimiser import Optimiser

    layer = torch.nn.ModuleDict({"layers": torch.nn.Linear(3, 3)})
    before = Optimiser([(layer, 1.0)], highest_rate=0.1, muon_rate=0.2)
    after = Optimiser([(layer, 0.5)], highest_rate=0.4, muon_rate=0.6)
    after.load_state_dict(before.state_dict())
    layer["layers"].weight.grad, layer["layers"].bias.grad = torch.ones(3, 3), torch.ones(3)
    after.step(0.5)
    assert [group["lr"] for part in after.parts for group in part.param_groups] == pytest.approx([0.1, 0.15])
