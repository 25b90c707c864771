"""Checkpoints as big_vision saves them: they load as the same model, and what is no such file is named."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import big_vision_files
import numpy as np
import pytest
import small_models
from cli_runner import Run, make_run
from unpacked_pieces import watch_pieces

import pg2ref
from pg2ref.adapters.apply import base_weights
from pg2ref.arrays import Array, widen
from pg2ref.checkpoint import npz
from pg2ref.checkpoint.big_vision import infer_config, load_big_vision
from pg2ref.checkpoint.config_json import config_fields
from pg2ref.checkpoint.loader import Checkpoint, load_checkpoint
from pg2ref.checkpoint.npz import Header
from pg2ref.checkpoint.quantize import quantize_checkpoint
from pg2ref.config import PaliGemmaConfig, parse_config
from pg2ref.errors import CheckpointError
from pg2ref.model.paligemma import PaliGemma
from pg2ref.published import PUBLISHED, PUBLISHED_1

SCENE = Path(__file__).parent / "data" / "scene.png"
Arrays = dict[str, Array]


@pytest.fixture(scope="module", params=["base", "gemma_1"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    small_models.write_folder(path, small_models.CASES[request.param])
    return path


@pytest.fixture(scope="module")
def arrays(folder: Path) -> Arrays:
    checkpoint = load_checkpoint(folder)
    return big_vision_files.arrays_of(base_weights(checkpoint), checkpoint.config)  # type: ignore[arg-type]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return make_run(capsys, monkeypatch)


def beside_config(folder: Path, path: Path) -> Path:
    shutil.copy(folder / "config.json", path)
    return path / "pt.npz"


def logits(checkpoint: Checkpoint, case: str) -> Array:
    model = PaliGemma(checkpoint.params, checkpoint.config)
    return small_models.our_stages(model, small_models.make_inputs(small_models.CASES[case]))["logits"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["V2", "uint16", "f4", "f2"])
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_it_is_the_same_model(
    kind: str, compressed: bool, prefix: str, folder: Path, arrays: Arrays, tmp_path: Path
) -> None:
    stored = {prefix + name: array for name, array in big_vision_files.stored_as(arrays, kind).items()}
    stored |= {"opt/mu/w": np.zeros(3), "chrono/steps": np.array([7])} if prefix else {}
    path = big_vision_files.write(beside_config(folder, tmp_path), stored, compressed=compressed)
    found, source = load_big_vision(path), load_checkpoint(folder)
    assert found.weight_type == {"V2": "bf16", "uint16": "bf16", "f4": "f32", "f2": "f16"}[kind]
    assert set(found.tensors) == set(source.tensors)
    for name, tensor in found.tensors.items():
        expected = widen(source.tensors[name], np.dtype(np.float32))
        if kind == "f2":
            expected = expected.astype(np.float16)
        np.testing.assert_array_equal(widen(tensor, expected.dtype), expected, err_msg=name)
        assert tensor.flags.c_contiguous
    if kind != "f2":
        case = "base" if source.config.text.post_norms else "gemma_1"
        np.testing.assert_array_equal(logits(found, case), logits(source, case))


def test_the_embedding_stays_in_the_file(folder: Path, arrays: Arrays, tmp_path: Path) -> None:
    path = big_vision_files.write(beside_config(folder, tmp_path), big_vision_files.stored_as(arrays, "V2"))
    embedding = load_big_vision(path).params.language_model.embed_tokens
    assert isinstance(embedding, np.ndarray)
    assert not embedding.flags.writeable
    owner: Any = embedding
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner.obj, npz.mmap.mmap)


def headers_of(config: PaliGemmaConfig) -> dict[str, Header]:
    """Of the arrays that say something, as a file of this model has them."""
    text, vision = config.text, config.vision
    L, D, N, K, H = (
        text.num_hidden_layers,
        text.hidden_size,
        text.num_attention_heads,
        text.num_key_value_heads,
        text.head_dim,
    )
    blocks = "img/Transformer/encoderblock/"
    shapes = {
        "img/embedding/kernel": (14, 14, 3, 1152),
        "img/pos_embedding": (1, vision.num_image_tokens, 1152),
        f"{blocks}MultiHeadDotProductAttention_0/query/kernel": (27, 1152, 16, 72),
        f"{blocks}MlpBlock_0/Dense_0/kernel": (27, 1152, 4304),
        "llm/embedder/input_embedding": (257152, D),
        "llm/layers/attn/q_einsum/w": (L, N, D, H),
        "llm/layers/attn/kv_einsum/w": (L, 2, K, D, H),
        "llm/layers/mlp/linear": (L, text.intermediate_size, D),
    }
    if text.post_norms:
        shapes["llm/layers/post_attention_norm/scale"] = (L, D)
    return {name: Header(shape, False, "|V2", 128) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", [*PUBLISHED, *(f"paligemma-1-{name}" for name in PUBLISHED_1)])
def test_the_config_of_published_files_is_found_in_their_shapes(name: str) -> None:
    published = PUBLISHED_1[name.removeprefix("paligemma-1-")] if name.startswith("paligemma-1") else PUBLISHED[name]
    rows = replace(published.text, vocab_size=257152)  # without <image> and those that fill up
    assert infer_config(headers_of(published), "pt.npz") == replace(published, text=rows)


def test_config_json_says_the_same(folder: Path) -> None:
    for config in (*PUBLISHED.values(), *PUBLISHED_1.values(), load_checkpoint(folder).config):
        assert parse_config(json.loads(json.dumps(config_fields(config)))) == config


def test_a_quantised_copy_has_a_config(folder: Path, arrays: Arrays, tmp_path: Path) -> None:
    path = big_vision_files.write(tmp_path / "pt.npz", big_vision_files.stored_as(arrays, "V2"))
    checkpoint = load_big_vision(path)
    assert checkpoint.config.image_token_id == 257152
    assert checkpoint.config.text.attn_logit_softcapping == (50.0 if checkpoint.config.text.post_norms else None)
    quantize_checkpoint(checkpoint, tmp_path / "int8", "int8", source_name="pt.npz")
    assert load_checkpoint(tmp_path / "int8").config == checkpoint.config


# What is no such file.


def rename(old: str, new: str) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({new: arrays.pop(old)})


def change(name: str, make: Callable[[Array], Array]) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: make(arrays[name])})


EMBEDDING, LINEAR, FINAL = "llm/embedder/input_embedding", "llm/layers/mlp/linear", "llm/final_norm/scale"
FAULTS: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "missing": (lambda arrays: arrays.pop(FINAL), f"missing {FINAL}"),
    "unexpected": (lambda arrays: arrays.update({"llm/layers/x": np.ones(2, "f4")}), "unexpected llm/layers/x"),
    "missing and inferred from": (lambda arrays: arrays.pop(LINEAR), rf"among them {LINEAR} with 3 axes, got none"),
    "another name": (
        rename(FINAL, "llm/last_norm/scale"),
        "missing llm/final_norm/scale; unexpected llm/last_norm/scale",
    ),
    "objects": (change(FINAL, lambda a: np.array([None] * len(a))), "llm/final_norm/scale: expected f32, bf16 or f16"),
    "integers": (change(FINAL, lambda a: a.astype(np.int32)), "expected f32, bf16 or f16, got '<i4'"),
    "doubles": (change(FINAL, lambda a: a.astype(np.float64)), "expected f32, bf16 or f16, got '<f8'"),
    "no numbers": (change(FINAL, lambda a: a[:0]), r"expected f32, bf16 or f16, got .*\(0,\)"),
    "another width": (change(FINAL, lambda a: a[:5]), r"wrong shape language_model.norm.weight"),
    "layers that are missing": (change(LINEAR, lambda a: a[:1]), rf"{LINEAR}: expected 4 layers, got 1"),
    "no axis": (change("img/head/kernel", lambda a: a[0]), "wrong shape multi_modal_projector.linear.weight"),
    "axes that are missing": (change("img/pos_embedding", lambda a: a[0]), "img/pos_embedding with 3 axes"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_other_arrays_are_named(name: str, arrays: Arrays, tmp_path: Path) -> None:
    spoil, complaint = FAULTS[name]
    stored = big_vision_files.stored_as(arrays, "f4")
    load_big_vision(big_vision_files.write(tmp_path / "good.npz", stored))
    spoil(stored)
    with pytest.raises(CheckpointError, match=complaint) as raised:
        load_big_vision(big_vision_files.write(tmp_path / "pt.npz", stored))
    assert raised.value.exit_code == 5


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_archives(compressed: bool, arrays: Arrays, tmp_path: Path) -> None:
    stored = big_vision_files.stored_as(arrays, "V2")
    whole = big_vision_files.write(tmp_path / "pt.npz", stored, compressed=compressed).read_bytes()
    for content in (b"", b"PK", whole[: len(whole) // 2], whole[len(whole) // 3 :], b"\x93NUMPY" + whole[6:][:500]):
        (tmp_path / "pt.npz").write_bytes(content)
        with pytest.raises(CheckpointError):
            load_big_vision(tmp_path / "pt.npz")


def test_members_of_another_size_than_their_shape(arrays: Arrays, tmp_path: Path) -> None:
    stored, good = big_vision_files.stored_as(arrays, "f4"), io.BytesIO()
    np.save(good, stored[FINAL])
    for content, complaint in ((good.getvalue() + b"more", "got more"), (good.getvalue()[:-4], "got fewer")):
        for compressed in (False, True):
            path = big_vision_files.write(tmp_path / "pt.npz", stored, compressed=compressed, **{FINAL: content})
            with pytest.raises(CheckpointError, match=complaint):
                load_big_vision(path)


def test_a_bomb_is_not_unpacked(arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that claims what its member really unpacks to: 64 MB out of 64 kB."""
    stored = big_vision_files.stored_as(arrays, "f4") | {FINAL: np.zeros((1 << 12, 1 << 12), np.float32)}
    path = big_vision_files.write(tmp_path / "pt.npz", stored, compressed=True)
    pieces = watch_pieces(monkeypatch)
    with pytest.raises(CheckpointError, match=r"67,108,992 bytes are packed in .*expected at least a 20th"):
        load_big_vision(path)
    assert max(pieces) < 1 << 20


# On the command line.


@pytest.fixture
def small_npz(small_folder: Path, tmp_path: Path) -> Path:
    checkpoint = load_checkpoint(small_folder)
    arrays = big_vision_files.arrays_of(base_weights(checkpoint), checkpoint.config)  # type: ignore[arg-type]
    return big_vision_files.write(beside_config(small_folder, tmp_path), big_vision_files.stored_as(arrays, "V2"))


def test_answers_are_those_of_the_folder(run: Run, small_folder: Path, small_npz: Path) -> None:
    tokenizer = small_folder / "tokenizer.model"
    ran = run("generate", SCENE, "-m", small_npz, "-n", 8)
    assert ran.code == 5
    assert "no tokenizer in" in ran.err
    expected = run("generate", SCENE, "-m", small_folder, "-n", 8)
    assert run("generate", SCENE, "-m", small_npz, "-n", 8, "--tokenizer", tokenizer).out == expected.out
    shutil.copy(tokenizer, small_npz.parent / "paligemma_tokenizer.model")
    assert run("generate", SCENE, "-m", small_npz, "-n", 8).out == expected.out
    assert run("tokenize", "caption en", "-m", small_npz).out == run("tokenize", "caption en", "-m", small_folder).out
    facts = json.loads(run("inspect", small_npz, "--json", "--verify").out)
    assert (facts["files"], facts["weights"]) == (1, "bf16")
    assert facts["parameters"] == json.loads(run("inspect", small_folder, "--json").out)["parameters"]


def test_becomes_a_released_folder_when_quantised(
    run: Run, small_folder: Path, small_npz: Path, tmp_path: Path
) -> None:
    shutil.copy(small_folder / "tokenizer.model", tmp_path)
    for model, out in ((small_npz, tmp_path / "a"), (small_folder, tmp_path / "b")):
        assert run("quantize", "-m", model, "-o", out, "--to", "int8").code == 0
    ours, theirs = (load_checkpoint(tmp_path / name).tensors for name in "ab")
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name])
    answers = [pg2ref.load(tmp_path / name).generate(SCENE, "ocr", max_new_tokens=4).token_ids for name in "ab"]
    assert answers[0] == answers[1]
