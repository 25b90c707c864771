"""Batches: each row's result is the one it gets alone, bit for bit; rows that fail say so in their place."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import Run, write_picture

import pg2ref
from pg2ref.arrays import Array
from pg2ref.batch import run as batch_run
from pg2ref.batch.rows import Row
from pg2ref.batch.run import answer_rows
from pg2ref.errors import CheckpointError, UsageError
from pg2ref.generation import batch as batch_generation
from pg2ref.generation.batch import Together
from pg2ref.generation.options import AnswerOptions
from pg2ref.model import paligemma
from pg2ref.trace import NotFiniteError

PROMPTS = ["caption en", "ocr", "detect red circle ; blue square", "answer en what is it?"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, small_folder: Path) -> Path:
    """A folder with five pictures, and two models whose answers end early or late: plain, int8 and int4."""
    import random_checkpoint

    folder = tmp_path_factory.mktemp("world")
    for i in range(5):
        write_picture(folder / f"picture{i}.png", (60 + i, 40), shift=37 * i)
    for kind in ("bf16", "int8", "int4"):
        path = folder / kind
        if kind == "bf16":
            shutil.copytree(small_folder, path)
        else:
            config = random_checkpoint.released_config("small")
            random_checkpoint.write_checkpoint(path, config, to=kind)
        ids = pg2ref.load(path).generate(folder / "picture0.png", PROMPTS[0], max_new_tokens=12).token_ids
        stops = {"eos_token_id": [max(set(ids), key=ids.index), 107]}
        (path / "generation_config.json").write_text(json.dumps(stops))
    return folder


def rows_of(world: Path, number: int) -> list[Row]:
    """Rows of one to three images, and of different lengths."""
    found = []
    for i in range(number):
        images = tuple(str(world / f"picture{(i + k) % 5}.png") for k in range(1 + (i % 4 == 3) + (i % 7 == 2)))
        found.append(Row(i + 1, f"row-{i}", PROMPTS[i % 4], images, max_new_tokens=3 + 5 * i % 11))
    return found


def without_time(line: str | None) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(line or "")
    del result["timing"]
    return result


@pytest.mark.parametrize(
    ("kind", "precision", "backend"),
    [
        ("bf16", "f32", "numba"),
        ("bf16", "bf16", "numba"),
        ("int8", "int8", "numba"),
        ("int4", "int4", "numba"),
        ("bf16", "f32", "numpy"),
        ("bf16", "f64", "numpy"),
    ],
)
def test_company_changes_no_bit(world: Path, kind: str, precision: str, backend: str) -> None:
    """More rows than decode together, and more than kernels sum as one; they come and go at different times."""
    model = pg2ref.load(world / kind, precision=precision, backend=backend)
    rows = rows_of(world, 19)
    outcomes = list(answer_rows(model, rows, AnswerOptions(logprobs=2), together=17))
    assert [outcome.row for outcome in outcomes] == rows
    lengths = set()
    for row, outcome in zip(rows, outcomes, strict=True):
        alone = model.generate(list(row.images), row.prompt, max_new_tokens=row.max_new_tokens, logprobs=2)
        expected = without_time(alone.to_json()) | {"id": row.id, "row": row.number}
        assert without_time(outcome.line) == expected  # every float in it, repr for repr
        lengths.add(len(alone.token_ids))
    assert len(lengths) > 1  # else they would all leave at once


def test_logits_of_company_are_bit_equal(world: Path) -> None:
    """Not only what is printed."""
    model = pg2ref.load(world / "bf16", precision="bf16").numbers
    prepared = [pg2ref.load(world / "bf16").prepare(list(row.images), row.prompt) for row in rows_of(world, 5)]
    together: Together[int] = Together(model)
    options = AnswerOptions(max_new_tokens=50)
    for i, one in enumerate(prepared):
        together.start(i, paligemma.encode_images(model, one.pixel_values), one.prompt_ids, options)
    together.step()
    together.step()
    for i, one in enumerate(prepared):
        alone: Together[int] = Together(model)
        alone.start(i, paligemma.encode_images(model, one.pixel_values), one.prompt_ids, options)
        alone.step()
        alone.step()
        if i in together.live:
            np.testing.assert_array_equal(together.live[i].logits_V, alone.live[i].logits_V)
            np.testing.assert_array_equal(together.live[i].cache.key_LSKH, alone.live[i].cache.key_LSKH)
    assert len(together.live) >= 3


def test_drawn_tokens_are_those_of_the_seed(world: Path) -> None:
    model, rows = pg2ref.load(world / "bf16"), rows_of(world, 5)
    outcomes = answer_rows(model, rows, AnswerOptions(temperature=1.5, seed=4), together=3)
    for row, outcome in zip(rows, outcomes, strict=True):
        alone = model.generate(list(row.images), row.prompt, max_new_tokens=row.max_new_tokens, temperature=1.5, seed=4)
        assert without_time(outcome.line)["tokens"] == without_time(alone.to_json())["tokens"]


def test_rows_are_taken_when_there_is_room(world: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: of a million rows behind a long one, only so many are read ahead."""
    monkeypatch.setattr(batch_run, "WAITING", 4)
    taken: list[int] = []
    picture = str(world / "picture0.png")

    def endless() -> Iterator[Row]:
        for number in count(1):
            taken.append(number)
            yield Row(number, number, "ocr", (picture,), max_new_tokens=60 if number == 1 else 1)

    model = pg2ref.load(small_folder)  # whose answers do not end so soon
    outcomes = answer_rows(model, endless(), AnswerOptions(), together=2)
    assert not taken
    first = next(outcomes)
    assert first.row.number == 1
    assert len(taken) <= 4 * 2


class Break:
    """Makes one row's numbers infinite at its second token, wherever it stands among others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, token: int) -> None:
        self.real, self.token = batch_generation.step, token
        monkeypatch.setattr(batch_generation, "step", self)

    def __call__(self, model: Any, token_ids: list[int], caches: list[Any], **options: Any) -> Array:
        if any(cache.prefix_length == self.token for cache in caches):
            raise NotFiniteError("text/layer_03/out")
        return self.real(model, token_ids, caches, **options)


def test_a_row_that_overflows_fails_alone(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = pg2ref.load(world / "bf16"), rows_of(world, 6)
    rows[2] = replace(rows[2], prompt="caption en, in more words than the others")
    expected = [without_time(one.line) for one in answer_rows(model, rows, AnswerOptions(), together=4)]
    broken = len(expected[2]["input"]["ids"])
    assert [len(one["input"]["ids"]) for one in expected].count(broken) == 1
    Break(monkeypatch, broken)
    outcomes = list(answer_rows(model, rows, AnswerOptions(), together=4))
    assert [outcome.failed for outcome in outcomes] == [False, False, True, False, False, False]
    assert [without_time(o.line) for o in outcomes if not o.failed] == expected[:2] + expected[3:]
    error = json.loads(outcomes[2].line or "")
    assert error["message"].startswith("text/layer_03/out holds NaN or infinity")


def test_a_checkpoint_that_is_broken_stops_the_batch(world: Path, small_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_folder, tmp_path / "broken")
    (file,) = folder.glob("*.safetensors")
    stored = bytearray(file.read_bytes())
    stored[-64:] = b"\xc0\x7f" * 32  # NaN in bf16, and in float32 too
    file.write_bytes(stored)
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        list(answer_rows(pg2ref.load(folder), rows_of(world, 3), AnswerOptions(), together=2))


def test_options_of_a_batch(world: Path) -> None:
    model = pg2ref.load(world / "bf16")
    with pytest.raises(UsageError, match="without beams"):
        answer_rows(model, [], AnswerOptions(beams=2), 1)
    with pytest.raises(UsageError, match="together is 0"):
        answer_rows(model, [], AnswerOptions(), 0)


LINES = [
    {"id": "a", "image": "picture0.png", "prompt": "ocr", "max_new_tokens": 5},
    {"image": "nowhere.png"},
    {"images": ["picture1.png", "picture2.png"]},
    {"id": 8, "image": "picture3.png", "prompt": "<image> <image>"},
    {"id": 9, "image": "picture3.png", "max_new_tokens": 0},
    {"id": 10, "video": "clip.gif", "frames": 2, "prompt": "caption en"},
    {"promt": "ocr", "id": 11},
    {"id": 12, "image": "picture4.png"},
]
FAILING = [1, 3, 4, 6]


@pytest.fixture
def questions(world: Path, tmp_path: Path) -> Path:
    for path in world.glob("*.png"):
        shutil.copy(path, tmp_path)
    from PIL import Image

    frames = [Image.open(path) for path in sorted(tmp_path.glob("*.png"))]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path / "in.jsonl"


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bad_rows_are_reported_in_their_place(run: Run, world: Path, questions: Path) -> None:
    out = questions.parent / "out.jsonl"
    ran = run("batch", questions, "-o", out, "-m", world / "bf16", "-p", "same?", "-n", 4, "--together", 3)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"pg2ref: 4 rows failed: their lines in {out} say why\n"
    results = read_results(out)
    assert [result["row"] for result in results] == list(range(1, 9))
    assert [result["id"] for result in results] == ["a", 2, 3, 8, 9, 10, 11, 12]
    assert [i for i, result in enumerate(results) if result["schema"] == "pg2ref/error/1"] == FAILING
    assert all(set(results[i]) == {"schema", "message", "exit_code", "id", "row"} for i in FAILING)
    assert [results[i]["exit_code"] for i in FAILING] == [4, 4, 2, 4]
    assert results[0]["input"]["prompt"] == "ocr"
    assert results[2]["input"]["prompt"] == "same?"
    assert len(results[2]["input"]["images"]) == 2
    assert [image["frame"] for image in results[5]["input"]["images"]] == [1, 3]
    assert len(results[0]["tokens"]) <= 5
    assert not list(questions.parent.glob("*.part"))


def test_results_are_those_of_generate(run: Run, world: Path, questions: Path) -> None:
    ran = run("batch", questions, "-o", "-", "-m", world / "bf16", "-p", "ocr", "-n", 5, "-q")
    results = [json.loads(line) for line in ran.out.splitlines()]
    alone = run("generate", questions.parent / "picture4.png", "-m", world / "bf16", "-p", "ocr", "-n", 5, "--json")
    assert without_time(json.dumps(results[7])) == without_time(alone.out) | {"id": 12, "row": 8}


def test_a_folder_of_images(run: Run, world: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in (1, 2, 10):
        shutil.copy(world / "picture0.png", pictures / f"p{number}.png")
    (pictures / "notes.txt").write_text("no image")
    ran = run("batch", pictures, "-o", tmp_path / "out.jsonl", "-m", world / "bf16", "-p", "ocr", "-n", 2)
    assert ran == (0, "", "")
    assert [result["id"] for result in read_results(tmp_path / "out.jsonl")] == ["p1.png", "p2.png", "p10.png"]
    assert run("batch", pictures, "-o", tmp_path / "out.jsonl", "-m", world / "bf16").code == 2


def test_shards_make_the_whole(run: Run, world: Path, questions: Path) -> None:
    lines: dict[int, dict[str, Any]] = {}
    for i in (1, 2, 3):
        out = questions.parent / f"{i}.jsonl"
        run("batch", questions, "-o", out, "-m", world / "bf16", "-p", "ocr", "-n", 3, "--shard", f"{i}/3")
        found = read_results(out)
        assert [result["row"] for result in found] == list(range(i, 9, 3))
        lines |= {result["row"]: result for result in found}
    whole = questions.parent / "whole.jsonl"
    run("batch", questions, "-o", whole, "-m", world / "bf16", "-p", "ocr", "-n", 3)
    in_order = [without_time(json.dumps({"timing": 0, **lines[row]})) for row in sorted(lines)]
    assert in_order == [without_time(json.dumps({"timing": 0, **result})) for result in read_results(whole)]


def test_rows_from_a_pipe(run: Run, world: Path, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(questions.parent)
    line = b'{"image": "picture0.png", "prompt": "ocr"}\n'
    ran = run("batch", "-", "-o", "-", "-m", world / "bf16", "-n", 1, stdin=line * 3)
    assert (ran.code, ran.err) == (0, "")
    assert [json.loads(result)["id"] for result in ran.out.splitlines()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nowhere.jsonl", "-o", "out"), 4),
        (("in.jsonl", "-o", "nowhere/out"), 2),
        (("in.jsonl", "-o", "out", "--shard", "0/2"), 2),
        (("in.jsonl", "-o", "out", "--shard", "3/2"), 2),
        (("in.jsonl", "-o", "out", "--shard", "two"), 2),
        (("in.jsonl", "-o", "-", "--resume"), 2),
        (("in.jsonl", "-o", "out", "--together", "0"), 2),
        (("in.jsonl", "-o", "out", "--top-k", "3"), 2),
        (("in.jsonl",), 2),
    ],
)
def test_refusals_leave_nothing(
    run: Run, world: Path, questions: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(questions.parent)
    before = sorted(questions.parent.iterdir())
    ran = run("batch", *arguments, "-m", world / "bf16")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (code, "", 1)
    assert sorted(questions.parent.iterdir()) == before


def test_the_examples_of_the_readme_run(
    world: Path, questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Many images, and videos")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    shutil.copy(questions.parent / "picture0.png", questions.parent / "photo.jpg")
    monkeypatch.chdir(questions.parent)
    names: dict[str, Any] = {"model": pg2ref.load(world / "bf16")}
    for block in blocks:
        exec(block, names)
    assert len(names["scores"].continuations) == 2
    assert len(names["result"].images) == 5
    assert json.loads(capsys.readouterr().out)["id"] == "a"


def test_a_batch_without_rows(run: Run, world: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n \n")
    assert run("batch", tmp_path / "in.jsonl", "-o", tmp_path / "out", "-m", world / "bf16") == (0, "", "")
    assert (tmp_path / "out").read_text() == ""
