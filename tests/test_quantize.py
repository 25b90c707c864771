"""Writing a quantised folder: every tensor in its form, whole or not at all, in little memory; and loading it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_checkpoint
import small_models
from closeness import BOUNDS

import pg2ref
from pg2ref.arrays import Array, bf16_to_f32, f32_to_bf16
from pg2ref.checkpoint import quantize
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.checkpoint.manifest import MANIFEST_NAME, read_manifest
from pg2ref.checkpoint.quantize import quantize_checkpoint
from pg2ref.checkpoint.safetensors_file import read_tensors
from pg2ref.checkpoint.safetensors_writer import Planned, new_tensor_file
from pg2ref.checkpoint.tensor_table import canonical_name, is_matrix, is_text
from pg2ref.errors import CheckpointError, Pg2RefError, UsageError
from pg2ref.model import backend
from pg2ref.quantized import QuantizedMatrix, dequantize, quantize_matrix

F32 = np.dtype(np.float32)
KINDS = [("int8", "bf16"), ("int8", "int8"), ("int4", "bf16"), ("int4", "int8")]
EMBEDDING = "language_model.model.embed_tokens.weight"


def write(source: Path, out: Path, to: str = "int4", vision: str = "bf16", **options: Any) -> Path:
    quantize_checkpoint(load_checkpoint(source), out, to, source_name=str(source), vision=vision, **options)
    return out


def rewrite(folder: Path, edit: Callable[[dict[str, Array]], None]) -> None:
    """Change the tensors of a copy of the small checkpoint."""
    path = folder / "model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(path).tensors.items()}
    edit(tensors)
    with new_tensor_file(path, {name: Planned(t.dtype, t.shape) for name, t in tensors.items()}) as put:
        for name, tensor in tensors.items():
            put(name, tensor)


@pytest.fixture
def copy(small_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_folder, tmp_path / "copy")


@pytest.mark.parametrize(("to", "vision"), KINDS)
def test_every_tensor_has_its_form(to: str, vision: str, small_folder: Path, tmp_path: Path) -> None:
    source = load_checkpoint(small_folder)
    quantized = load_checkpoint(write(small_folder, tmp_path / "out", to, vision))
    assert quantized.weight_type == to
    assert set(quantized.weights) == set(source.weights)
    for name, tensor in source.tensors.items():
        canonical, weight = canonical_name(name), quantized.weights[name]
        kind = to if is_text(canonical) else vision
        if is_matrix(canonical) and kind != "bf16":
            expected = quantize_matrix(tensor, {"int8": 8, "int4": 4}[kind])
            assert isinstance(weight, QuantizedMatrix)
            assert (weight.shape, weight.bits) == (expected.shape, expected.bits)
            np.testing.assert_array_equal(weight.codes, expected.codes)
            np.testing.assert_array_equal(weight.scales, expected.scales)
        else:
            assert weight.dtype == np.uint16
            np.testing.assert_array_equal(weight, tensor)
    assert sum(isinstance(weight, QuantizedMatrix) for weight in quantized.weights.values()) == (
        1 + 4 * 7 + (vision == "int8") * (1 + 3 * 6)
    )


def test_the_folder_is_complete(small_folder: Path, tmp_path: Path) -> None:
    (source := shutil.copytree(small_folder, tmp_path / "source")).joinpath("NOTICE.txt").write_text("terms")
    (source / "training.log").write_text("nothing anybody needs")
    out = write(source, tmp_path / "out")
    expected = {path.name for path in small_folder.iterdir()} | {MANIFEST_NAME, "NOTICE.txt"}
    assert {path.name for path in out.iterdir()} == expected
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (out / "config.json").read_bytes() == (small_folder / "config.json").read_bytes()
    manifest = read_manifest(out)
    assert manifest is not None
    size = (small_folder / "model.safetensors").stat().st_size
    assert manifest.source == {"name": str(source), "weights": "bf16", "files": {"model.safetensors": size}}


def test_shards_hold_the_same(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_checkpoint(write(small_folder, tmp_path / "whole")).tensors
    monkeypatch.setattr(quantize, "MAX_SHARD_BYTES", 100_000)
    monkeypatch.setattr(quantize, "WEIGHTS_AT_ONCE", 1)  # 16 rows at a time
    random_checkpoint.write_checkpoint(  # sharded itself: its index must not come along
        tmp_path / "source", random_checkpoint.released_config("small"), max_shard_bytes=400_000
    )
    sharded = load_checkpoint(write(tmp_path / "source", tmp_path / "sharded"))
    assert len(sharded.files) > 2
    monkeypatch.undo()
    single = write(tmp_path / "source", tmp_path / "single")
    assert [path.name for path in single.glob("model*")] == ["model.safetensors"]
    assert set(sharded.tensors) == set(whole)
    for name, tensor in whole.items():
        np.testing.assert_array_equal(sharded.tensors[name], tensor)


def test_other_types_and_names_of_the_source(copy: Path, tmp_path: Path) -> None:
    """Float weights, and the names of modules in memory; vision matrices are rounded to bf16, norms stay."""
    source = {name: np.array(tensor) for name, tensor in load_checkpoint(copy).tensors.items()}

    def edit(tensors: dict[str, Array]) -> None:
        for name in list(tensors):
            tensors["model." + name.replace("language_model.model.", "language_model.")] = (
                bf16_to_f32(tensors.pop(name)) * np.float32(1 + 2**-12)  # needs more bits than bf16 has
            )

    rewrite(copy, edit)
    quantized = load_checkpoint(write(copy, tmp_path / "out"))
    norm, fc1 = "vision_tower.vision_model.post_layernorm.weight", "encoder.layers.0.mlp.fc1.weight"
    more = np.float32(1 + 2**-12)
    np.testing.assert_array_equal(quantized.weights[f"model.{norm}"], bf16_to_f32(source[norm]) * more)
    stored = source[f"vision_tower.vision_model.{fc1}"]
    np.testing.assert_array_equal(quantized.weights[f"model.vision_tower.vision_model.{fc1}"], stored)
    assert quantized.manifest is not None
    assert "model.language_model.embed_tokens.weight" in quantized.manifest.tensors
    assert quantized.manifest.source["weights"] == "f32"


def test_a_head_of_its_own_is_quantised_too(tmp_path: Path) -> None:
    small_models.write_folder(tmp_path / "source", small_models.CASES["own_head"])
    quantized = load_checkpoint(write(tmp_path / "source", tmp_path / "out"))
    assert isinstance(quantized.params.language_model.lm_head, QuantizedMatrix)
    assert quantized.params.language_model.lm_head is not quantized.params.language_model.embed_tokens


def test_buffers_that_nothing_reads_stay_behind(copy: Path, tmp_path: Path) -> None:
    name = "vision_tower.vision_model.embeddings.position_ids"
    rewrite(copy, lambda tensors: tensors.update({name: np.arange(16)[None]}))
    assert name not in load_checkpoint(write(copy, tmp_path / "out")).tensors


def test_progress_counts_the_bytes_of_the_source(small_folder: Path, tmp_path: Path) -> None:
    heard: list[int] = []
    write(small_folder, tmp_path / "out", on_bytes=heard.append)
    assert sum(heard) == sum(tensor.nbytes for tensor in load_checkpoint(small_folder).tensors.values())


# Whole or not at all.


@pytest.mark.parametrize("name", ["out", "."])
def test_an_empty_folder_may_be_there(
    name: str, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out" if name == "." else tmp_path)
    write(small_folder, Path(name))
    assert read_manifest(tmp_path / "out") is not None
    monkeypatch.chdir(tmp_path)  # the folder that was there is gone


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [EMBEDDING, "language_model.model.norm.weight"])
def test_weights_that_are_no_numbers(name: str, value: float, copy: Path, tmp_path: Path) -> None:
    def edit(tensors: dict[str, Array]) -> None:
        tensors[name].reshape(-1)[-1] = f32_to_bf16(np.array([value], np.float32))[0]

    rewrite(copy, edit)
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        write(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_nothing_is_left_after_an_interruption(small_folder: Path, tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        assert len(list(tmp_path.iterdir())) == 1, "the work goes on beside the new folder"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(small_folder, tmp_path / "out", on_bytes=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_in_one_process_do_not_meet(small_folder: Path, tmp_path: Path) -> None:
    """Of one name and in turns: whoever is later finds the folder taken, and leaves nothing of its own."""
    second: list[str] = []

    def write_another(count: int) -> None:
        if not second:
            second.append("begun")
            write(small_folder, tmp_path / "out", "int8")

    with pytest.raises(Pg2RefError, match="cannot be written"):
        write(small_folder, tmp_path / "out", on_bytes=write_another)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_checkpoint(tmp_path / "out").weight_type == "int8"


@pytest.mark.skipif(os.name != "posix", reason="rights of another kind")
def test_the_folder_has_the_rights_of_any_new_one(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "any").mkdir()
    assert write(small_folder, tmp_path / "out").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_disk_without_room(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(quantize.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Pg2RefError, match=r"0\.00 GB are free; make room"):
        write(small_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantize, "write_shards", full)
    with pytest.raises(Pg2RefError, match="No space left on device"):
        write(small_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions hold back")
def test_a_folder_that_may_not_be_written(small_folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(Pg2RefError, match="Permission denied"):
            write(small_folder, tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("to", "vision", "message"),
    [("int3", "bf16", "to is 'int3', expected one of int8, int4"), ("int8", "int4", "vision is 'int4', expected one")],
)
def test_unknown_types(to: str, vision: str, message: str, small_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write(small_folder, tmp_path / "out", to, vision)


def test_places_that_cannot_be_taken(small_folder: Path, tmp_path: Path) -> None:
    once = write(small_folder, tmp_path / "once", "int8")
    with pytest.raises(UsageError, match="quantised to int8 already"):
        write(once, tmp_path / "twice")
    with pytest.raises(UsageError, match="exists, expected a new folder or an empty one"):
        write(small_folder, once)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="exists, expected a new folder"):
        write(small_folder, tmp_path / "file")
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere; make it first"):
        write(small_folder, tmp_path / "nowhere" / "out")
    assert (tmp_path / "file").read_text() == "mine"


# What is loaded again.


def test_the_loader_insists_on_the_manifest(small_folder: Path, tmp_path: Path) -> None:
    out = write(small_folder, tmp_path / "out")
    text = json.loads((out / MANIFEST_NAME).read_text())
    (out / MANIFEST_NAME).write_text(json.dumps(text | {"to": "int8"}))
    with pytest.raises(CheckpointError, match=r"wrong type .*expected int8, got int4"):
        load_checkpoint(out)
    del text["tensors"][EMBEDDING]
    (out / MANIFEST_NAME).write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match=r"missing .*embed_tokens(.|\n)*unexpected .*embed_tokens\.codes"):
        load_checkpoint(out)


def test_a_manifest_of_another_shape(small_folder: Path, tmp_path: Path) -> None:
    """It fits its tensors, which do not fit config.json."""
    out = write(small_folder, tmp_path / "out")
    text = (out / MANIFEST_NAME).read_text()
    (out / MANIFEST_NAME).write_text(text.replace("[2432, 72]", "[2431, 72]"))
    with pytest.raises(CheckpointError, match=r"wrong shape .*expected \(2432, 72\), got \(2431, 72\)"):
        load_checkpoint(out)


@pytest.mark.parametrize(("to", "vision"), KINDS)
def test_the_reference_takes_a_matrix_for_what_it_means(
    to: str, vision: str, small_folder: Path, tmp_path: Path
) -> None:
    """The same answer scores, to the last bit, as a plain checkpoint that holds the weights of the codes."""
    out = write(small_folder, tmp_path / "out", to, vision)
    plain = shutil.copytree(small_folder, tmp_path / "plain")
    weights = load_checkpoint(out).weights

    def edit(tensors: dict[str, Array]) -> None:
        for name, weight in weights.items():
            if isinstance(weight, QuantizedMatrix):
                tensors[name] = dequantize(weight, F32)

    rewrite(plain, edit)
    picture = Path(__file__).parent / "data" / "scene.png"
    answers = []
    for folder in (out, plain):
        model = pg2ref.load(folder, backend="numpy", precision="f32")
        answers.append(model.generate(picture, "caption en", max_new_tokens=4))
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].logprobs == answers[1].logprobs


@pytest.mark.parametrize(("to", "vision"), KINDS)
def test_kernels_and_reference_agree_on_integer_precision(
    to: str, vision: str, small_folder: Path, tmp_path: Path
) -> None:
    """Both round inputs alike, but a number near a half may fall to either side, and layers pass that on.

    So the yardstick is what rounding changes at all, the same weights computed without it.
    """
    out = write(small_folder, tmp_path / "out", to, vision)
    picture = Path(__file__).parent / "data" / "scene.png"
    kinds = [("numba", to), ("numpy", to), ("numpy", "f32")]
    models = [pg2ref.load(out, backend=name, precision=precision) for name, precision in kinds]
    fast, reference, exact = (model.trace(picture, "caption en").stages for model in models)
    for stage in fast:
        if stage.endswith("/out") or stage in ("text/final_norm", "logits"):
            rounding = np.linalg.norm(reference[stage] - exact[stage])
            share = np.linalg.norm(fast[stage] - reference[stage]) / rounding
            assert share < BOUNDS["integer stages"].factor, stage


# Precision by name.


@pytest.mark.parametrize(
    ("name", "precision", "weights", "expected"),
    [
        ("numba", None, "int8", "int8"),
        ("numba", None, "int4", "int4"),
        ("numba", "int4", "int4", "int4"),
        ("numba", None, "f32", "f32"),
        ("numba", "bf16", "f32", "bf16"),
        ("numpy", None, "int8", "f32"),
        ("numpy", None, "bf16", "f32"),
        ("numpy", "int8", "int8", "int8"),
        ("numpy", "bf16", "int4", "bf16"),
        ("numpy", "f64", "int4", "f64"),
    ],
)
def test_which_precision_is_taken(name: str, precision: str | None, weights: str, expected: str) -> None:
    assert backend.choose_precision(name, precision, weights) == expected


@pytest.mark.parametrize("has_instruction", [True, False])
def test_bf16_is_the_default_where_it_is_quick(has_instruction: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_bf16_dot", lambda: has_instruction)
    assert backend.choose_precision("numba", None, "bf16") == ("bf16" if has_instruction else "f32")
    assert backend.choose_precision("numba", None, "int8") == "int8"


@pytest.mark.parametrize(
    ("name", "precision", "weights", "message"),
    [
        ("numba", "int8", "bf16", "precision int8 is for int8 weights, these are bf16: .*quantize --to int8"),
        ("numpy", "int4", "int8", "precision int4 is for int4 weights, these are int8"),
        ("numba", "f32", "int8", "int8 weights in precision int8 alone, not f32: .*backend numpy"),
        ("numba", "bf16", "int4", "int4 weights in precision int4 alone, not bf16: .*backend numpy"),
    ],
)
def test_precisions_that_cannot_be(name: str, precision: str, weights: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        backend.choose_precision(name, precision, weights)


def test_the_result_says_how_it_was_computed(small_folder: Path, tmp_path: Path) -> None:
    model = pg2ref.load(write(small_folder, tmp_path / "out", "int8"))
    assert (model.described["dtype"], model.described["weights"]) == ("int8", "int8")
    assert model.numbers.cache_dtype == np.uint16
    with pytest.raises(UsageError, match="precision int8 is for int8 weights"):
        pg2ref.load(small_folder, precision="int8")
