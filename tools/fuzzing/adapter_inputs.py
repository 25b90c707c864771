"""LoRA folders: adapter_config.json and adapter_model.safetensors, damaged, contradicting, or of another checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.config_inputs import SMALL
from fuzzing.mutation import Rng, json_bytes, lay_out, mutate, mutate_json, two_files
from fuzzing.safetensors_inputs import SMALL_FILES, safetensors_bytes
from fuzzing.target import Target
from pg2ref.adapters.adapter import PART_PATTERN, PREFIX, WEIGHTS_NAME, read_adapter
from pg2ref.adapters.lora_config import CONFIG_NAME
from pg2ref.checkpoint.safetensors_file import DTYPES, read_tensors
from pg2ref.checkpoint.tensor_table import LM_HEAD, expected_shapes

RANK = 2
CONFIG: Mapping[str, Any] = {
    "alpha_pattern": {},
    "base_model_name_or_path": "google/paligemma2-3b-pt-224",
    "bias": "none",
    "init_lora_weights": True,
    "lora_alpha": 4,
    "lora_dropout": 0.1,
    "modules_to_save": ["multi_modal_projector"],
    "peft_type": "LORA",
    "r": RANK,
    "rank_pattern": {},
    "target_modules": ["q_proj", "k_proj", "gate_proj", "fc1", "embed_tokens", "lm_head"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}
PATTERNS = ("(?i)Q_PROJ", "(?x)q_proj # one", ".*", "(", "a{99999999}", "(?P<a>q)", "(?(1)a|b)", r"\1", "q_proj|", "")
MODULES = (  # by the paths of two families, with the canonical name that each stands for
    ("model.language_model.layers.0.self_attn.q_proj", "language_model.layers.0.self_attn.q_proj"),
    ("model.language_model.layers.3.self_attn.k_proj", "language_model.layers.3.self_attn.k_proj"),
    ("language_model.model.layers.2.mlp.gate_proj", "language_model.layers.2.mlp.gate_proj"),
    ("vision_tower.vision_model.encoder.layers.1.mlp.fc1", "vision_tower.encoder.layers.1.mlp.fc1"),
    ("lm_head", "lm_head"),
)
SAVED = "model.multi_modal_projector"
SHAPES = {**expected_shapes(SMALL), LM_HEAD: (SMALL.text.vocab_size, SMALL.text.hidden_size)}


def random_tensors(rng: Rng, dora: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of some modules, as peft writes them."""
    tensors: dict[str, tuple[int, ...]] = {}
    for path, canonical in rng.sample(MODULES, rng.choice((1, 1, 2, 3))):
        outputs, inputs = SHAPES[f"{canonical}.weight"]
        tensors[f"{PREFIX}{path}.lora_A.weight"] = RANK, inputs
        tensors[f"{PREFIX}{path}.lora_B.weight"] = outputs, RANK
        if dora:
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = (outputs,)
    if rng.random() < 0.3 and not dora:
        vocabulary, width = SHAPES["language_model.embed_tokens.weight"]
        path = f"{PREFIX}model.language_model.embed_tokens"
        tensors |= {f"{path}.lora_embedding_A": (RANK, vocabulary), f"{path}.lora_embedding_B": (width, RANK)}
    if rng.random() < 0.3:
        tensors |= {
            f"{PREFIX}{SAVED}.linear.{kind}": SHAPES[f"{SAVED[6:]}.linear.{kind}"] for kind in ("weight", "bias")
        }
    return tensors


def weights_file(rng: Rng, tensors: Mapping[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of them, with a name or shape changed, or bytes."""
    kind, changes = rng.choice(("F32", "BF16", "F16")), rng.random() < 0.4
    header: dict[str, Any] = {}
    position = 0
    for name, shape in tensors.items():
        axes, stored = list(shape), kind
        if changes and rng.random() < 0.3:
            at = rng.randrange(len(axes))
            axes[at] = rng.choice((0, 1, 2, 3, axes[at] + 1))
        if changes and rng.random() < 0.2:
            name = rng.choice(
                (name + ".weight", name.replace("lora_A", "lora_B"), name.replace("model.", "", 1), name[:-1])
            )
        if changes and rng.random() < 0.1:
            stored = rng.choice(list(DTYPES))
        size = int(np.prod(axes, dtype=np.int64)) * DTYPES[stored].itemsize
        header[name] = {"dtype": stored, "shape": axes, "data_offsets": [position, position + size]}
        position += size
    data = bytes(position) if rng.random() < 0.9 else rng.randbytes(position)
    if rng.random() < 0.1:
        return safetensors_bytes(json_bytes(mutate_json(header, rng), rng), data)
    valid = safetensors_bytes(json.dumps(header).encode(), data)
    return mutate(valid, rng, [valid]) if rng.random() < 0.3 else valid


def random_config(rng: Rng, dora: bool) -> bytes:
    """adapter_config.json, often changed, often by a pattern."""
    fields: Any = {**CONFIG, "use_dora": dora, "use_rslora": rng.random() < 0.3}
    if rng.random() < 0.3:
        name = rng.choice(("rank_pattern", "alpha_pattern", "target_modules", "modules_to_save"))
        pattern = rng.choice((*PATTERNS, "q_proj", r"model\.language_model.*"))
        fields[name] = (
            {pattern: rng.choice((RANK, 1, 3, 0.5))} if name.endswith("pattern") else rng.choice((pattern, [pattern]))
        )
    if rng.random() < 0.4:
        fields = mutate_json(fields, rng)
    text = json_bytes(fields, rng)
    return mutate(text, rng, [text]) if rng.random() < 0.1 else text


def make_adapter(rng: Rng) -> bytes:
    """Both files."""
    dora = rng.random() < 0.3
    return two_files(random_config(rng, dora), weights_file(rng, random_tensors(rng, dora)))


def read_folder(content: bytes, folder: Path) -> None:
    """No tensor of the file is left out, and what is added or replaced has the shape of what is there."""
    lay_out(content, folder / CONFIG_NAME, folder / WEIGHTS_NAME)
    adapter = read_adapter(folder, SMALL)
    stored = read_tensors(folder / WEIGHTS_NAME).tensors
    parts = sum(PART_PATTERN.fullmatch(name.removeprefix(PREFIX)) is not None for name in stored)
    used = sum(2 + (one.magnitude_O is not None) for one in adapter.low_rank.values())
    assert (used, len(adapter.replaced)) == (parts, len(stored) - parts), "tensors that vanish"
    for name, one in adapter.low_rank.items():
        assert (one.up_RO.shape[1], one.down_RD.shape[1]) == SHAPES[name]
        assert len(one.up_RO) == len(one.down_RD)
        assert all(np.isfinite(numbers).all() for numbers in (one.scale, one.up_RO, one.down_RD))
    assert all(tensor.shape == SHAPES[name] for name, tensor in adapter.replaced.items())
    assert adapter.saved <= set(adapter.replaced)


TARGETS = (Target("adapter", make_adapter, read_folder, SMALL_FILES),)
