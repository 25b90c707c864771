"""Adapters that peft made, run by peft on Transformers' model and by pg2ref: every stage, every variant."""

from pathlib import Path

import numpy as np
import pytest
import small_models
from closeness import assert_close

from pg2ref.adapters.adapter import read_adapter
from pg2ref.adapters.apply import with_adapters
from pg2ref.adapters.merge import merge_checkpoint
from pg2ref.arrays import Array
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.checkpoint.tensor_table import canonical_name
from pg2ref.model.paligemma import PaliGemma

pytestmark = pytest.mark.parity

VARIANTS = (  # of peft_adapters.py, which cannot be imported without the extra
    "alpha over r",
    "rsLoRA",
    "rank and alpha patterns",
    "patterns with rsLoRA",
    "targets by a regular expression",
    "all linear layers",
    "some layers, some left out",
    "modules_to_save",
    "saved embedding, tied",
    "saved norms",
    "all biases",
    "biases of adapted layers",
    "embedding",
    "embedding and output matrix",
    "DoRA",
    "DoRA of all, rsLoRA, patterns",
)
INPUTS = small_models.make_inputs(small_models.CASES["base"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    small_models.write_folder(path, small_models.CASES["base"])
    return path


def our_stages(folder: Path, adapters: list[Path], dtype: type) -> dict[str, Array]:
    base = load_checkpoint(folder)
    checkpoint = with_adapters(base, [read_adapter(adapter, base.config) for adapter in adapters])
    return small_models.our_stages(PaliGemma(checkpoint.params, checkpoint.config, np.dtype(dtype)), INPUTS)


def check(folder: Path, adapters: list[Path], theirs: dict[str, Array]) -> None:
    truth, ours = (our_stages(folder, adapters, dtype) for dtype in (np.float64, np.float32))
    assert set(ours) == set(theirs)
    for stage, exact in truth.items():
        assert_close(ours[stage], exact, "adapted stage/float32", terms=1)
        assert_close(theirs[stage].reshape(exact.shape), exact, "adapted stage/peft float32", terms=1)
    plain = our_stages(folder, [], np.float64)
    assert np.abs(truth["logits"] - plain["logits"]).max() > 0.05 * np.abs(plain["logits"]).max()


def test_all_variants_are_named() -> None:
    import peft_adapters

    assert tuple(peft_adapters.VARIANTS) == VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stage_agrees(variant: str, folder: Path, tmp_path: Path) -> None:
    import peft_adapters

    peft_adapters.make(folder, tmp_path, variant)
    check(folder, [tmp_path], peft_adapters.record(folder, [tmp_path], INPUTS))


@pytest.mark.parametrize("order", [("alpha over r", "DoRA"), ("DoRA", "alpha over r")])
def test_two_at_once(order: tuple[str, str], folder: Path, tmp_path: Path) -> None:
    import peft_adapters

    adapters = [tmp_path / "first", tmp_path / "second"]
    for seed, (path, variant) in enumerate(zip(adapters, order, strict=True)):
        peft_adapters.make(folder, path, variant, seed=seed)
    check(folder, adapters, peft_adapters.record(folder, adapters, INPUTS))


@pytest.mark.parametrize("variant", ["DoRA of all, rsLoRA, patterns", "modules_to_save", "saved embedding, tied"])
def test_merged_checkpoints_are_those_that_peft_merges(variant: str, folder: Path, tmp_path: Path) -> None:
    """Loaded by Transformers, tied or not: the same weights but for the rounding to bf16 at the end."""
    import peft_adapters
    import transformers_stages

    peft_adapters.make(folder, tmp_path / "adapter", variant)
    base = load_checkpoint(folder)
    merge_checkpoint(base, [read_adapter(tmp_path / "adapter", base.config)], tmp_path / "merged")
    expected = peft_adapters.merge(folder, tmp_path / "adapter").state_dict()
    merged = transformers_stages.load_model(tmp_path / "merged").state_dict()
    assert {canonical_name(name) for name in load_checkpoint(tmp_path / "merged").tensors} <= set(
        map(canonical_name, expected)
    )
    for name, tensor in expected.items():
        largest = float(tensor.abs().max())
        np.testing.assert_allclose(merged[name].numpy(), tensor.numpy(), rtol=2**-8, atol=2**-9 * largest, err_msg=name)


def test_an_adapter_in_bf16(folder: Path, tmp_path: Path) -> None:
    import peft_adapters
    import torch

    peft_adapters.make(folder, tmp_path, "alpha over r", dtype=torch.bfloat16)
    base = load_checkpoint(folder)
    thin = read_adapter(tmp_path, base.config).low_rank["language_model.layers.0.self_attn.q_proj.weight"]
    assert thin.down_RD.dtype == np.float32
    assert not (thin.down_RD.view(np.uint32) & 0xFFFF).any()
    check(folder, [tmp_path], peft_adapters.record(folder, [tmp_path], INPUTS))
