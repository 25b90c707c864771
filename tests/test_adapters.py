"""LoRA folders: what they add is that of the dense sum, in every precision, and what does not fit is named.

How peft itself computes them: test_peft_parity.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora_folders
import numpy as np
import pytest
import small_models
from cli_runner import Run, make_run
from closeness import assert_close
from lora_folders import TARGETS
from safetensors.numpy import load_file, save_file

import pg2ref
from pg2ref.adapted import AdaptedMatrix
from pg2ref.adapters.adapter import read_adapter
from pg2ref.adapters.apply import base_weights, with_adapters
from pg2ref.adapters.merge import merge_checkpoint
from pg2ref.arrays import Array, bf16_to_f32, f32_to_bf16
from pg2ref.checkpoint.loader import EMBEDDING, Checkpoint, load_checkpoint
from pg2ref.checkpoint.quantize import quantize_checkpoint
from pg2ref.checkpoint.tensor_table import LM_HEAD, assemble, expected_shapes
from pg2ref.errors import CheckpointError, ConfigError, UsageError
from pg2ref.model import gemma2
from pg2ref.model.backend import operations
from pg2ref.model.paligemma import PaliGemma

SCENE = Path(__file__).parent / "data" / "scene.png"
SCALE = 2.0  # lora_alpha 6 over r 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    small_models.write_folder(path, small_models.CASES["base"])
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> Checkpoint:
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def thin(base: Checkpoint) -> dict[str, Array]:
    return lora_folders.thin_matrices(expected_shapes(base.config), 3, seed=1, dora=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return make_run(capsys, monkeypatch)


def adapted(base: Checkpoint, *folders: Path) -> Checkpoint:
    return with_adapters(base, [read_adapter(folder, base.config) for folder in folders])


def stages(checkpoint: Checkpoint, dtype: Any = np.float64, *, backend: str = "numpy", precision: str = "f64") -> Any:
    model = PaliGemma(checkpoint.params, checkpoint.config, np.dtype(dtype), operations(backend, precision))
    return small_models.our_stages(model, small_models.make_inputs(small_models.CASES["base"]))


def dense_stages(base: Checkpoint, *adapters: tuple[dict[str, Array], float]) -> Any:
    weights = lora_folders.dense(base_weights(base), list(adapters))
    return stages(base._replace(params=assemble(base.config, weights)))


# What is computed.


@pytest.mark.parametrize("family", lora_folders.FAMILIES)
def test_every_family_of_names_finds_its_targets(
    family: str, base: Checkpoint, thin: dict[str, Array], tmp_path: Path
) -> None:
    lora_folders.write(tmp_path, thin, family)
    adapter = read_adapter(tmp_path, base.config)
    assert set(adapter.low_rank) == {f"{path}.weight" for path in TARGETS}
    exact = dense_stages(base, (thin, SCALE))
    for stage, value in stages(adapted(base, tmp_path)).items():
        np.testing.assert_allclose(value, exact[stage], rtol=1e-9, atol=1e-9, err_msg=stage)
    assert np.abs(exact["logits"] - stages(base)["logits"]).max() > 0.1


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_stages_are_those_of_the_dense_sum(backend: str, dora: bool, base: Checkpoint, tmp_path: Path) -> None:
    tensors = lora_folders.thin_matrices(expected_shapes(base.config), 3, seed=2, dora=dora)
    lora_folders.write(tmp_path, tensors, use_dora=dora)
    exact = dense_stages(base, (tensors, SCALE))
    found = stages(adapted(base, tmp_path), np.float32, backend=backend, precision="f32")
    for stage, value in found.items():
        assert_close(value, exact[stage], "adapted stage/float32", terms=1)


def test_several_adapters_are_applied_in_order(base: Checkpoint, tmp_path: Path) -> None:
    shapes = expected_shapes(base.config)
    both = [lora_folders.thin_matrices(shapes, rank, seed=rank, dora=dora) for rank, dora in ((3, True), (2, False))]
    lora_folders.write(tmp_path / "a", both[0], use_dora=True)
    lora_folders.write(tmp_path / "b", both[1], r=2, lora_alpha=1)
    lora_folders.write(tmp_path / "c", both[0], use_dora=True)
    exact = dense_stages(base, (both[0], SCALE), (both[1], 0.5), (both[0], SCALE))
    found = stages(adapted(base, *(tmp_path / name for name in "abc")), np.float32, precision="f32")
    for stage, value in found.items():
        assert_close(value, exact[stage], "adapted stage/float32", terms=1)


def test_the_weights_stay_where_they_lie(base: Checkpoint, thin: dict[str, Array], tmp_path: Path) -> None:
    lora_folders.write(tmp_path, thin)
    layer, plain = (checkpoint.params.language_model.layers[2] for checkpoint in (adapted(base, tmp_path), base))
    assert isinstance(layer.gate_proj, AdaptedMatrix)
    assert layer.gate_proj.base is plain.gate_proj
    assert layer.down_proj is plain.down_proj
    assert layer.gate_proj.shape == (56, 32)
    assert layer.gate_proj.size == 56 * 32 + 3 * (56 + 32)
    assert layer.gate_proj.nbytes == 2 * 56 * 32 + 4 * 3 * (56 + 32)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_beside_quantised_weights(backend: str, bits: str, base: Checkpoint, tmp_path: Path) -> None:
    """In integer precision: what the adapter adds is not rounded, so that of the plain model is all the difference."""
    quantize_checkpoint(base, tmp_path / "q", bits, source_name="base", vision="int8")
    quantised = load_checkpoint(tmp_path / "q")
    tensors = lora_folders.thin_matrices(expected_shapes(base.config), 3, seed=2, dora=True)
    lora_folders.write(tmp_path / "lora", tensors, use_dora=True)
    with_both = adapted(quantised, tmp_path / "lora")
    exact = dense_stages(quantised, (tensors, SCALE))
    for stage, value in stages(with_both).items():
        np.testing.assert_allclose(value, exact[stage], rtol=2e-6, atol=2e-6, err_msg=stage)
    reference, found = stages(with_both, precision=bits), stages(with_both, np.float32, backend=backend, precision=bits)
    share = np.linalg.norm(found["logits"] - reference["logits"]) / np.linalg.norm(
        reference["logits"] - exact["logits"]
    )
    assert share < 1  # as for plain models: the bound "integer stages"


def test_rows_are_not_rounded_for_what_adapters_add(base: Checkpoint, thin: dict[str, Array], rng: Any) -> None:
    """In bf16 W sees rounded rows, the adapter does not (as peft, whose matrices are float32 by default)."""
    base_OD = f32_to_bf16(rng.normal(size=(48, 32)).astype(np.float32))
    down_RD, up_OR = rng.normal(size=(3, 32)).astype(np.float32), rng.normal(size=(48, 3)).astype(np.float32)
    matrix = AdaptedMatrix(base_OD, down_RD, np.ascontiguousarray(up_OR.T), None)
    x_TD = rng.normal(size=(5, 32)).astype(np.float32)
    rounded_TD = bf16_to_f32(f32_to_bf16(x_TD)).astype(np.float64)
    exact_TO = rounded_TD @ bf16_to_f32(base_OD).T + x_TD.astype(np.float64) @ (up_OR.astype(np.float64) @ down_RD).T
    for backend in ("numpy", "numba"):
        found_TO = operations(backend, "bf16").linear(x_TD, matrix)
        np.testing.assert_allclose(found_TO, exact_TO, rtol=2e-5, atol=2e-5)


def test_answers_do_not_depend_on_what_decodes_beside(base: Checkpoint, thin: dict[str, Array], tmp_path: Path) -> None:
    checkpoint = adapted(base, lora_folders.write(tmp_path, thin))
    matrix = checkpoint.params.language_model.layers[0].q_proj
    x_TD = np.random.default_rng(0).normal(size=(7, 32)).astype(np.float32)
    linear = operations("numba", "bf16").linear
    together = linear(x_TD, matrix)
    for t in range(7):
        np.testing.assert_array_equal(linear(x_TD[t : t + 1], matrix)[0], together[t])


# What is replaced, and what is tied.


def test_a_saved_output_matrix_leaves_the_embedding(base: Checkpoint, folder: Path, tmp_path: Path) -> None:
    head_VD = np.random.default_rng(1).normal(size=(304, 32)).astype(np.float32)
    lora_folders.write(tmp_path, {"lm_head.weight": head_VD}, modules_to_save=["lm_head"])
    text = adapted(base, tmp_path).params.language_model
    np.testing.assert_array_equal(text.lm_head, head_VD)
    assert text.embed_tokens is base.params.language_model.embed_tokens
    in_bf16 = with_adapters(base, [read_adapter(tmp_path, base.config)], in_bf16=True).params.language_model
    np.testing.assert_array_equal(in_bf16.lm_head, f32_to_bf16(head_VD))


def test_a_saved_embedding_leaves_the_output_matrix(base: Checkpoint, tmp_path: Path) -> None:
    """modules_to_save trains a copy; a base layer that came along is the tied matrix itself."""
    rows_VD = np.random.default_rng(1).normal(size=(304, 32)).astype(np.float32)
    name = "language_model.embed_tokens.weight"
    lora_folders.write(tmp_path / "copy", {name: rows_VD}, modules_to_save=["embed_tokens"])
    lora_folders.write(tmp_path / "itself", {name: rows_VD})
    copy, itself = (adapted(base, tmp_path / which).params.language_model for which in ("copy", "itself"))
    np.testing.assert_array_equal(copy.embed_tokens, rows_VD)
    assert copy.lm_head is base.params.language_model.lm_head
    assert itself.lm_head is itself.embed_tokens


def test_an_adapted_embedding_leaves_the_output_matrix(base: Checkpoint, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    down_RV, up_DR = rng.normal(size=(3, 304)).astype(np.float32), rng.normal(size=(32, 3)).astype(np.float32)
    at = "language_model.embed_tokens"
    tensors = {f"{at}.lora_embedding_A": down_RV, f"{at}.lora_embedding_B": up_DR}
    lora_folders.write(tmp_path, tensors, target_modules=["embed_tokens"])
    checkpoint = adapted(base, tmp_path)
    text, plain = checkpoint.params.language_model, base.params.language_model
    assert text.lm_head is plain.embed_tokens
    ids = [5, 9, 5]
    expected_TD = bf16_to_f32(np.asarray(plain.embed_tokens)[ids]) + SCALE * (up_DR @ down_RV).T[ids]
    found_TD = gemma2.embed(text, base.config.text, np.array(ids), np.dtype(np.float64))
    np.testing.assert_allclose(found_TD, expected_TD * 32**0.5, rtol=1e-6)
    merge_checkpoint(base, [read_adapter(tmp_path, base.config)], tmp_path / "merged")
    merged = load_checkpoint(tmp_path / "merged")
    assert not merged.config.tie_word_embeddings
    np.testing.assert_array_equal(merged.tensors["language_model.lm_head.weight"], plain.embed_tokens)
    rows_VD = bf16_to_f32(np.asarray(merged.params.language_model.embed_tokens))
    np.testing.assert_array_equal(f32_to_bf16(rows_VD[ids]), f32_to_bf16(expected_TD.astype(np.float32)))


# What does not fit.


Tensors = dict[str, Array]
FIRST = TARGETS[0]
MISFITS: dict[str, tuple[Callable[[Tensors], object], dict[str, Any], str]] = {
    "a module that is not there": (
        lambda t: t.update({"language_model.layers.9.mlp.up_proj.lora_A.weight": np.ones((3, 32), np.float32)}),
        {},
        r"no target .*language_model.layers.9.mlp.up_proj.lora_A",
    ),
    "a tensor that is not there": (
        lambda t: t.update({"language_model.classifier.weight": np.ones(3, np.float32)}),
        {},
        r"no target .*language_model.classifier.weight",
    ),
    "a module without partner": (lambda t: t.pop(f"{FIRST}.lora_B.weight"), {}, rf"missing .*{FIRST}.lora_B \(64, 3\)"),
    "another width": (
        lambda t: t.update({f"{FIRST}.lora_A.weight": np.ones((3, 48), np.float32)}),
        {},
        rf"wrong shape .*{FIRST}.lora_A: expected \(3, 32\), got \(3, 48\)",
    ),
    "another rank": (lambda t: None, {"rank_pattern": {"fc1": 8}}, r"wrong shape .*fc1.lora_A: expected \(8, 24\)"),
    "NaN": (
        lambda t: t.update({f"{FIRST}.lora_A.weight": np.full((3, 32), np.nan, np.float32)}),
        {},
        rf"not finite .*{FIRST}.lora_A.weight holds NaN or infinity",
    ),
    "integers": (
        lambda t: t.update({f"{FIRST}.lora_A.weight": np.ones((3, 32), np.int32)}),
        {},
        rf"wrong type .*{FIRST}.lora_A.weight: expected bf16, f16, f32, got int32",
    ),
    "not among the targets": (
        lambda t: None,
        {"target_modules": ["gate_proj", "up_proj", "fc1"]},
        r"q_proj is not among the target_modules",
    ),
    "not among the targets of a pattern": (
        lambda t: None,
        {"target_modules": r"model\.(language_model|vision_tower).*\.(q_proj|fc1|up_proj)"},
        r"gate_proj is not among the target_modules",
    ),
    "magnitudes without DoRA": (
        lambda t: t.update({f"{FIRST}.lora_magnitude_vector": np.ones(64, np.float32)}),
        {},
        rf"unexpected .*{FIRST}.lora_magnitude_vector \(64,\)",
    ),
    "DoRA without magnitudes": (lambda t: None, {"use_dora": True}, r"missing .*lora_magnitude_vector \(64,\)"),
    "bias of the thin matrices": (
        lambda t: t.update({f"{FIRST}.lora_B.bias": np.ones(64, np.float32)}),
        {},
        rf"no target .*{FIRST}.lora_B.bias",
    ),
    "a norm": (
        lambda t: t.update({"language_model.norm.lora_A.weight": np.ones((3, 32), np.float32)}),
        {},
        r"no target .*language_model.norm.lora_A",
    ),
    "a replacement of another shape": (
        lambda t: t.update({"language_model.embed_tokens.weight": np.ones((305, 32), np.float32)}),
        {"modules_to_save": ["embed_tokens"]},
        r"wrong shape .*embed_tokens.weight: expected \(304, 32\), got \(305, 32\)",
    ),
    "tied weights": (
        lambda t: t.update({"language_model.embed_tokens.weight": np.ones((304, 32), np.float32)}),
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        "not computed  ensure_weight_tying",
    ),
    "nothing": (lambda t: t.clear(), {}, "there is no tensor in it"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_named(name: str, base: Checkpoint, thin: dict[str, Array], tmp_path: Path) -> None:
    spoil, fields, complaint = MISFITS[name]
    read_adapter(lora_folders.write(tmp_path / "good", thin), base.config)
    tensors = dict(thin)
    spoil(tensors)
    lora_folders.write(tmp_path / "bad", tensors, **fields)
    with pytest.raises(CheckpointError, match=complaint) as raised:
        read_adapter(tmp_path / "bad", base.config)
    assert raised.value.exit_code == 5
    assert "google/paligemma2-3b-pt-224" in str(raised.value)


def test_an_adapter_of_a_larger_model(base: Checkpoint, small_folder: Path, tmp_path: Path) -> None:
    shapes = expected_shapes(load_checkpoint(small_folder).config)
    lora_folders.write(tmp_path, lora_folders.thin_matrices(shapes, 3, seed=1, dora=False))
    with pytest.raises(CheckpointError, match=r"(?s)12 problems; .*expected \(3, 32\), got \(3, 72\)"):
        read_adapter(tmp_path, base.config)


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3', pg2ref computes 'LORA' only"),
    "no method": ({"peft_type": None}, "peft_type is None"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_16"}, "'init_lora_weights' is 'pissa_niter_16'"),
    "bias of the thin matrices": ({"lora_bias": True}, "'lora_bias' is True"),
    "aLoRA": ({"alora_invocation_tokens": [3, 4]}, "'alora_invocation_tokens' is"),
    "a field of tomorrow": ({"use_more_magic": True}, "'use_more_magic' is True"),
    "rank 0": ({"r": 0}, "r is 0, expected a whole number from 1"),
    "a rank that is none": ({"r": True}, "r is True, expected a whole number"),
    "alpha": ({"lora_alpha": "16"}, "lora_alpha is '16', expected a number"),
    "no pattern": ({"target_modules": "(q_proj"}, "target_modules has .*no regular expression"),
    "patterns": ({"rank_pattern": {"q_proj": -1}}, "rank_pattern, 'q_proj' is -1"),
    "pattern table": ({"alpha_pattern": [1]}, r"alpha_pattern is \[1\], expected an object"),
    "targets": ({"target_modules": 3}, "target_modules is 3, expected a list"),
    "flags": ({"use_dora": "yes"}, "use_dora is 'yes', expected true or false"),
}


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_what_is_not_computed_is_refused(name: str, base: Checkpoint, thin: dict[str, Array], tmp_path: Path) -> None:
    fields, complaint = CONFIG_FAULTS[name]
    lora_folders.write(tmp_path, thin, **fields)
    with pytest.raises(ConfigError, match=complaint) as raised:
        read_adapter(tmp_path, base.config)
    assert "\n" not in str(raised.value)


def test_a_switched_off_field_of_tomorrow_is_none_of_ours(base: Checkpoint, thin: Any, tmp_path: Path) -> None:
    adapter = read_adapter(lora_folders.write(tmp_path, thin, use_more_magic=False, magic_config=None), base.config)
    assert len(adapter.low_rank) == len(thin) // 2


def test_folders_that_are_none(base: Checkpoint, thin: dict[str, Array], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected an adapter, a folder with adapter_config.json"):
        read_adapter(tmp_path, base.config)
    lora_folders.write(tmp_path, thin)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"found adapter_model.bin; convert it to safetensors"):
        read_adapter(tmp_path, base.config)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: expected a safetensors file, found nothing"):
        read_adapter(tmp_path, base.config)


def test_a_module_under_two_names(base: Checkpoint, thin: dict[str, Array], tmp_path: Path) -> None:
    path = lora_folders.write(tmp_path, thin) / "adapter_model.safetensors"
    stored = load_file(path)
    save_file(stored | {key.replace("model.model.", "model."): value for key, value in stored.items()}, path)
    with pytest.raises(CheckpointError, match=r"doubled .*is another name of a module"):
        read_adapter(tmp_path, base.config)


def test_two_that_replace_one_tensor(base: Checkpoint, tmp_path: Path) -> None:
    head_VD = np.ones((304, 32), np.float32)
    for name in "ab":
        lora_folders.write(tmp_path / name, {"lm_head.weight": head_VD}, modules_to_save=["lm_head"])
    with pytest.raises(CheckpointError, match=r"a and .*b both have lm_head.weight"):
        adapted(base, tmp_path / "a", tmp_path / "b")


# Merged.


@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_checkpoint_is_the_rounded_sum(dora: bool, base: Checkpoint, tmp_path: Path) -> None:
    tensors = lora_folders.thin_matrices(expected_shapes(base.config), 3, seed=2, dora=dora)
    lora_folders.write(tmp_path / "lora", tensors, use_dora=dora)
    heard: list[int] = []
    adapters = [read_adapter(tmp_path / "lora", base.config)]
    merged = merge_checkpoint(base, adapters, tmp_path / "merged", on_bytes=heard.append)
    written = load_checkpoint(tmp_path / "merged")
    assert (merged.adapted, merged.replaced) == (len(TARGETS), 0)
    assert sum(heard) == merged.total_bytes == sum(tensor.nbytes for tensor in base.tensors.values())
    assert set(written.tensors) == set(base.tensors)
    assert (written.folder / "config.json").read_bytes() == (base.folder / "config.json").read_bytes()
    exact = lora_folders.dense(base_weights(base), [(tensors, SCALE)])
    for name, tensor in base_weights(written).items():
        if name.removesuffix(".weight") in TARGETS:
            expected = f32_to_bf16(exact[name].astype(np.float32))
            off = np.abs(bf16_to_f32(np.asarray(tensor)) - bf16_to_f32(expected)) / np.abs(exact[name]).max()
            assert (off > 0).mean() < 1e-3  # where the sum lies in the middle of two numbers
            assert off.max() < 2**-8
        else:
            np.testing.assert_array_equal(tensor, exact[name])


def test_merged_is_whole_or_not_there(base: Checkpoint, thin: dict[str, Array], tmp_path: Path) -> None:
    adapters = [read_adapter(lora_folders.write(tmp_path / "lora", thin), base.config)]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(UsageError, match="exists, expected a new folder"):
        merge_checkpoint(base, adapters, tmp_path / "full")

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_checkpoint(base, adapters, tmp_path / "out", on_bytes=stop)
    assert {path.name for path in tmp_path.iterdir()} == {"lora", "full"}


def test_sums_that_float16_cannot_hold(base: Checkpoint, tmp_path: Path) -> None:
    copy = tmp_path / "half"
    copy.mkdir()
    (copy / "config.json").write_bytes((base.folder / "config.json").read_bytes())
    save_file({k: bf16_to_f32(v).astype(np.float16) for k, v in base.tensors.items()}, copy / "model.safetensors")
    half = load_checkpoint(copy)
    at = FIRST + ".lora_"
    large = {f"{at}A.weight": np.full((3, 32), 300, np.float32), f"{at}B.weight": np.full((64, 3), 300, np.float32)}
    adapters = [read_adapter(lora_folders.write(tmp_path / "lora", large), half.config)]
    with pytest.raises(CheckpointError, match=r"q_proj.weight would hold NaN or infinity"):
        merge_checkpoint(half, adapters, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantised_sources_are_not_merged(base: Checkpoint, thin: dict[str, Array], tmp_path: Path) -> None:
    quantize_checkpoint(base, tmp_path / "q", "int8", source_name="base")
    quantised = load_checkpoint(tmp_path / "q")
    adapters = [read_adapter(lora_folders.write(tmp_path / "lora", thin), quantised.config)]
    with pytest.raises(UsageError, match="merge first, then `pg2ref quantize`"):
        merge_checkpoint(quantised, adapters, tmp_path / "out")


# On the command line, and from Python.


@pytest.fixture(scope="module")
def small_lora(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = expected_shapes(load_checkpoint(small_folder).config)
    tensors = lora_folders.thin_matrices(shapes, 3, seed=1, dora=False)
    return lora_folders.write(tmp_path_factory.mktemp("lora"), tensors)


@pytest.mark.parametrize(
    "command", [("generate", SCENE, "-p", "detect cat"), ("detect", SCENE, "cat"), ("segment", SCENE, "cat")]
)
def test_answers_with_an_adapter_are_those_of_the_merged_checkpoint(
    command: tuple[Any, ...], run: Run, small_folder: Path, small_lora: Path, tmp_path: Path
) -> None:
    merged = run("merge", "-m", small_folder, "--adapter", small_lora, "-o", tmp_path / "mine", "--json")
    assert (merged.code, merged.err) == (0, "")
    facts = json.loads(merged.out)
    assert (facts["matrices_adapted"], facts["tensors_replaced"]) == (len(TARGETS), 0)
    assert facts["bytes"] == sum(tensor.nbytes for tensor in load_checkpoint(tmp_path / "mine").tensors.values())
    options = ("-n", 6, "--precision", "f32", "--json", "-q")
    beside, sums, plain = (
        json.loads(run(*command, *options, *model).out)
        for model in (("-m", small_folder, "--adapter", small_lora), ("-m", tmp_path / "mine"), ("-m", small_folder))
    )
    assert beside["model"]["adapters"] == [str(small_lora)]
    assert plain["model"]["adapters"] == []
    assert beside["tokens"][0]["logprob"] == pytest.approx(sums["tokens"][0]["logprob"], abs=0.05)
    assert abs(beside["tokens"][0]["logprob"] - plain["tokens"][0]["logprob"]) > 0.05


def test_verbose_says_what_was_adapted(run: Run, small_folder: Path, small_lora: Path) -> None:
    ran = run("generate", SCENE, "-m", small_folder, "--adapter", small_lora, "-n", 1, "-v")
    assert ran.code == 0
    assert f"{small_lora}: {len(TARGETS)} matrices adapted, 0 tensors replaced\n" in ran.err


def test_mistakes_of_the_call(run: Run, small_folder: Path, tmp_path: Path) -> None:
    ran = run("generate", SCENE, "-m", small_folder, "--adapter", tmp_path)
    assert ran.code == 5
    assert ran.err.startswith(f"pg2ref: {tmp_path}: expected an adapter")
    ran = run("merge", "-m", small_folder, "-o", tmp_path / "out")
    assert ran.code == 2
    assert "no adapter given" in ran.err
    with pytest.raises(UsageError, match="expected a list of folders"):
        pg2ref.load(small_folder, adapters="lora")


def test_from_python(small_folder: Path, small_lora: Path) -> None:
    model = pg2ref.load(small_folder, adapters=[small_lora], precision="f32")
    assert model.described["adapters"] == [str(small_lora)]
    assert isinstance(model.numbers.params.language_model.layers[0].q_proj, AdaptedMatrix)
    assert model.generate(SCENE, "caption en", max_new_tokens=2).token_ids
    assert model.checkpoint.params.language_model.lm_head is model.checkpoint.params.language_model.embed_tokens
    assert {EMBEDDING, LM_HEAD} - set(base_weights(model.checkpoint)) == {LM_HEAD}
