"""PaliGemma 1: a Gemma 1 decoder in place of Gemma 2, through every way in. Its stages: case gemma_1 of the records."""

import json
from pathlib import Path
from typing import Any

import pytest
import random_checkpoint
from cli_runner import Run, make_run

import pg2ref
from pg2ref.benchmark import work
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.errors import CheckpointError

SCENE = Path(__file__).parent / "data" / "scene.png"
GEMMA_2_ONLY = ("query_pre_attn_scalar", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with the other decoder, one key head for all queries as released."""
    config_json: dict[str, Any] = random_checkpoint.released_config("small")
    text = {key: value for key, value in config_json["text_config"].items() if key not in GEMMA_2_ONLY}
    text |= {"model_type": "gemma", "num_key_value_heads": 1}
    path = tmp_path_factory.mktemp("checkpoints") / "small-1"
    random_checkpoint.write_checkpoint(path, {**config_json, "text_config": text})
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return make_run(capsys, monkeypatch)


def test_inspect_says_which_it_is(run: Run, folder: Path) -> None:
    facts = json.loads(run("inspect", folder, "--json").out)
    assert facts["model"] == "PaliGemma 1, a size of its own"
    assert (facts["decoder_layers"], facts["query_scale"]) == ("4 (0 sliding, 4 full)", "16 ** -0.5")
    assert (facts["sliding_window"], facts["attention_soft_cap"], facts["logit_soft_cap"]) == (None, None, None)


def test_answers_on_the_command_line(run: Run, folder: Path) -> None:
    asked = ("generate", SCENE, "-m", folder, "-n", 8)
    by_kernels, by_numpy = (run(*asked, "--precision", "f32", "--backend", name) for name in ("numba", "numpy"))
    assert (by_kernels.code, by_kernels.err) == (0, "")
    assert by_kernels.out == by_numpy.out


def test_is_quantised_like_any_other(run: Run, folder: Path, tmp_path: Path) -> None:
    ran = run("quantize", "-m", folder, "-o", tmp_path / "int8", "--to", "int8")
    assert (ran.code, ran.err) == (0, "")
    plain, quantised = (
        pg2ref.load(path, precision="f32", backend="numpy").generate(SCENE, "caption en", max_new_tokens=1, logprobs=3)
        for path in (folder, tmp_path / "int8")
    )
    assert quantised.logprobs[0] == pytest.approx(plain.logprobs[0], abs=0.1)
    assert quantised.logprobs[0] != plain.logprobs[0]


def test_a_layer_has_two_norms(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    layer = checkpoint.params.language_model.layers[0]
    stored = checkpoint.tensors["language_model.model.layers.0.post_attention_layernorm.weight"]
    assert layer.pre_feedforward_layernorm is stored
    assert layer.post_attention_layernorm is layer.post_feedforward_layernorm is None
    weights = [weight for weight in layer if weight is not None]
    assert work.stored_bytes(layer) == sum(weight.nbytes for weight in weights)
    assert len(weights) == 9


def test_weights_of_the_other_decoder_are_refused(folder: Path, small_folder: Path, tmp_path: Path) -> None:
    """A Gemma 2 file under a Gemma 1 config has tensors too many."""
    for name, source in (("config.json", folder), ("model.safetensors", small_folder)):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"unexpected .*pre_feedforward_layernorm"):
        load_checkpoint(tmp_path)


@pytest.mark.parity
def test_from_image_file_and_prompt_to_text(folder: Path, tmp_path: Path) -> None:
    """As with PaliGemma 2 (test_parity_transformers.py), and from the folder as Transformers saves it again."""
    import torch
    import transformers
    from PIL import Image

    processor = transformers.AutoProcessor.from_pretrained(folder, use_fast=False)
    reference = transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = processor(images=Image.open(SCENE), text="<image>caption en", return_tensors="pt")
    output = reference.generate(**inputs, max_new_tokens=24, do_sample=False)
    expected = output[0, inputs["input_ids"].shape[1] :].tolist()
    reference.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for path in (folder, tmp_path):
        result = pg2ref.load(path, precision="f32").generate(SCENE, "caption en", max_new_tokens=24)
        assert list(result.token_ids) == expected
