"""Writes LoRA folders as peft does, without it, and adds them to weights the plain way: one dense sum, in float64."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pg2ref.arrays import Array, widen
from pg2ref.quantized import QuantizedMatrix, dequantize

FAMILIES = {  # of tensor_table.py, by the module paths that peft saw: text layers, vision layers, output matrix
    "A": ("language_model.model.", "vision_tower.vision_model.", "language_model.lm_head"),
    "B": ("language_model.model.", "vision_tower.", "language_model.lm_head"),
    "C": ("model.language_model.", "model.vision_tower.", "lm_head"),
    "D": ("model.language_model.", "model.vision_tower.vision_model.", "lm_head"),
}
CONFIG: Mapping[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "google/paligemma2-3b-pt-224",
    "r": 3,
    "lora_alpha": 6,
    "target_modules": ["q_proj", "gate_proj", "up_proj", "fc1"],
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "lora_dropout": 0.1,
    "task_type": "CAUSAL_LM",
}
TARGETS = (  # canonical names
    "language_model.layers.0.self_attn.q_proj",
    "language_model.layers.2.mlp.gate_proj",
    "language_model.layers.2.mlp.up_proj",
    "language_model.layers.3.mlp.gate_proj",
    "vision_tower.encoder.layers.1.self_attn.q_proj",
    "vision_tower.encoder.layers.1.mlp.fc1",
)


def stored_name(canonical: str, family: str) -> str:
    """A module's path in one of the families."""
    text, vision, head = FAMILIES[family]
    if canonical == "lm_head":
        return head
    projector = "model.multi_modal_projector." if family in "CD" else "multi_modal_projector."
    for ours, theirs in (("language_model.", text), ("vision_tower.", vision), ("multi_modal_projector.", projector)):
        if canonical.startswith(ours):
            return theirs + canonical.removeprefix(ours)
    raise AssertionError(canonical)


def thin_matrices(shapes: Mapping[str, tuple[int, ...]], rank: int, seed: int, *, dora: bool) -> dict[str, Array]:
    """Random tensors of an adapter for TARGETS, by canonical names."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for path in TARGETS:
        outputs, inputs = shapes[path + ".weight"]
        tensors[f"{path}.lora_A.weight"] = rng.normal(0, inputs**-0.5, (rank, inputs)).astype(np.float32)
        tensors[f"{path}.lora_B.weight"] = rng.normal(0, 0.3, (outputs, rank)).astype(np.float32)
        if dora:
            tensors[f"{path}.lora_magnitude_vector"] = rng.uniform(0.5, 2, outputs).astype(np.float32)
    return tensors


def write(folder: Path, tensors: Mapping[str, Array], family: str = "C", **fields: Any) -> Path:
    """A folder with these tensors, under the names of a family; `fields` differ from CONFIG."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}))
    named = {}
    for name, tensor in tensors.items():
        cut = name.find(".lora_")
        path, rest = (name[:cut], name[cut:]) if cut > 0 else name.rsplit(".", 1)
        dot = "" if cut > 0 else "."
        named[f"base_model.model.{stored_name(path, family)}{dot}{rest}"] = np.ascontiguousarray(tensor)
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def dense(weights: Mapping[str, Any], adapters: list[tuple[Mapping[str, Array], float]]) -> dict[str, Any]:
    """Weights by canonical names, in float64 where (tensors, scale) of an adapter change them."""
    exact = dict(weights)
    for path in TARGETS:
        name, base = path + ".weight", weights[path + ".weight"]
        double = np.dtype(np.float64)
        matrix_OD = dequantize(base, double) if isinstance(base, QuantizedMatrix) else widen(base, double)
        sum_OD = matrix_OD
        for tensors, scale in adapters:
            up_OR, down_RD = (tensors[f"{path}.lora_{part}.weight"].astype(np.float64) for part in "BA")
            change_OD = scale * (up_OR @ down_RD)
            sum_OD = sum_OD + change_OD
            if f"{path}.lora_magnitude_vector" in tensors:
                lengths_O = np.sqrt(((matrix_OD + change_OD) ** 2).sum(axis=1))  # of this one alone
                sum_OD = sum_OD * (tensors[f"{path}.lora_magnitude_vector"] / lengths_O)[:, None]
        exact[name] = sum_OD
    return exact
