"""Scores of given answers: Transformers' loss for the same labels, and the log-probabilities that decoding reports."""

import json
import math
from pathlib import Path

import golden_records
import numpy as np
import pytest
import small_models
from cli_runner import Run
from closeness import assert_close
from small_models import CASES

import pg2ref
from pg2ref.errors import PromptError, UsageError
from pg2ref.generation.generate import generate
from pg2ref.generation.sampling import greedy
from pg2ref.generation.score import ROWS_AT_ONCE, score
from pg2ref.model.paligemma import encode_images

SCENE = Path(__file__).parent / "data" / "scene.png"
LONG = "one two three " * 40  # more tokens than rows of logits are made at once


@pytest.fixture(scope="module")
def model(small_folder: Path) -> pg2ref.Model:
    return pg2ref.load(small_folder, precision="f32")


@pytest.mark.parity
def test_the_loss_is_that_of_transformers(small_folder: Path, model: pg2ref.Model) -> None:
    """The small model's window, 9, is shorter than its prefix of 20, so the answers lose sight of some of it."""
    import torch
    import transformers
    from PIL import Image

    processor = transformers.AutoProcessor.from_pretrained(small_folder, use_fast=False)
    reference = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        small_folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    texts = ["cat", "a small dog", "<loc0001><loc0345> cat ; <loc0100>", "", LONG]
    ours = model.score(SCENE, "caption en", texts).continuations
    truth = pg2ref.load(small_folder, precision="f64").score(SCENE, "caption en", texts).continuations
    assert len(ours[-1].tokens) > ROWS_AT_ONCE + 1
    for text, one, exact in zip(texts, ours, truth, strict=True):
        inputs = processor(images=Image.open(SCENE), text="<image>caption en", suffix=text, return_tensors="pt")
        labels = inputs["labels"][0]
        assert [token.id for token in one.tokens] == labels[labels != -100].tolist()
        with torch.no_grad():
            loss = reference(**inputs).loss
        expected = np.array(math.log(exact.perplexity))
        assert_close(np.float32(math.log(one.perplexity)).reshape(()), expected, "loss", terms=1)
        assert_close(loss.numpy(), expected, "loss", terms=1)


@pytest.mark.parametrize("case_name", ["base", "window_below_image", "two_images"])
def test_an_answer_scores_what_decoding_reported(case_name: str, tmp_path: Path) -> None:
    """Read at once, behind others, and token by token."""
    case = CASES[case_name]
    small_models.write_folder(tmp_path, case)
    numbers, inputs = small_models.open_model(tmp_path), small_models.make_inputs(case)
    embeddings, prompt = encode_images(numbers, list(inputs.pixel_values)), inputs.ids[: inputs.prompt_length]
    events = list(generate(numbers, embeddings, prompt, sampler=greedy, max_new_tokens=12))
    ids = [event.token_id for event in events]
    assert ids == golden_records.answer(numbers, inputs, 12)
    scored = score(numbers, embeddings, prompt, [ids[::-1], ids, ids[:5]])
    decoded = np.array([event.logprob for event in events], np.float32)
    assert_close(np.array(scored[1], np.float32), decoded, "decode", terms=len(inputs.ids))
    np.testing.assert_array_equal(scored[2], scored[1][:5])


def test_probabilities_of_all_next_tokens_sum_to_one(tmp_path: Path) -> None:
    case = CASES["base"]
    small_models.write_folder(tmp_path, case)
    numbers, inputs = small_models.open_model(tmp_path, np.float64), small_models.make_inputs(case)
    embeddings = encode_images(numbers, list(inputs.pixel_values))
    every = [[7, token_id] for token_id in range(numbers.config.text.vocab_size)]
    scored = score(numbers, embeddings, inputs.ids[: inputs.prompt_length], every)
    assert sum(math.exp(second) for _, second in scored) == pytest.approx(1, abs=1e-12)


def test_ranking_and_perplexity(model: pg2ref.Model) -> None:
    scores = model.score(SCENE, "caption en", ["cat", "a small dog", "cat"])
    first, long, again = scores.continuations
    assert first == again
    assert scores.ranked() == sorted([first, again, long], key=lambda one: -one.logprob)
    assert first.logprob == sum(token.logprob for token in first.tokens)
    assert first.perplexity == pytest.approx(math.exp(-first.logprob / len(first.tokens)))
    assert [token.id for token in first.tokens] == [*model.tokenizer.tokenize("cat"), model.tokenizer.eos_id]
    (beginning,) = model.score(SCENE, "caption en", ["cat"], with_end=False).continuations
    assert [token.logprob for token in beginning.tokens] == pytest.approx(
        [token.logprob for token in first.tokens[:-1]], abs=1e-4
    )


def test_json_has_the_documented_fields(run: Run, small_folder: Path) -> None:
    ran = run("score", SCENE, "-m", small_folder, "-p", "ocr", "-c", "cat", "-c", "a dog", "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert set(found) == set("schema model input continuations policy warnings versions".split())
    assert found["schema"] == "pg2ref/score/1"
    assert set(found["input"]) == {"images", "prompt", "ids", "image_tokens"}
    assert [one["text"] for one in found["continuations"]] == ["cat", "a dog"]  # as they were given
    assert all(set(one) == {"text", "tokens", "logprob", "perplexity"} for one in found["continuations"])
    assert all(set(token) == {"id", "text", "logprob"} for one in found["continuations"] for token in one["tokens"])


def test_lines_come_best_first(run: Run, small_folder: Path) -> None:
    ran = run("score", SCENE, "-m", small_folder, "-p", "ocr", "-c", "a small\ndog", "-c", "cat", "-c", "cat dog")
    assert (ran.code, ran.err) == (0, "")
    rows = [line.split("\t") for line in ran.out.splitlines()]
    assert [float(row[0]) for row in rows] == sorted((float(row[0]) for row in rows), reverse=True)
    assert sorted(row[2] for row in rows) == ["a small dog", "cat", "cat dog"]
    beginnings = run("score", SCENE, "-m", small_folder, "-p", "ocr", "-c", "cat", "--no-end").out
    assert float(beginnings.split("\t")[0]) > float(dict((row[2], row[0]) for row in rows)["cat"])


def test_what_cannot_be_scored(run: Run, model: pg2ref.Model, small_folder: Path) -> None:
    with pytest.raises(UsageError, match="nothing to score"):
        model.score(SCENE, "ocr", [])
    with pytest.raises(UsageError, match="nothing to score"):
        model.score(SCENE, "ocr", ["cat", ""], with_end=False)
    with pytest.raises(PromptError, match="half of a surrogate"):
        model.score(SCENE, "ocr", ["\ud800"])
    assert run("score", SCENE, "-m", small_folder, "-p", "ocr").code == 2
    assert run("score", SCENE, "-m", small_folder, "-p", "ocr", "-c", "", "--no-end").code == 2
    assert run("score", "nowhere.png", "-m", small_folder, "-p", "ocr", "-c", "cat").code == 4
