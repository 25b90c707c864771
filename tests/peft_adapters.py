"""Adapters that the peft package makes and runs, one for each way in which a LoRA can be set up. Needs `parity`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers_stages
from small_models import Inputs

from pg2ref.arrays import Array

ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # as most have it
PATTERNS = {  # keys are regular expressions for the end of a module's path
    "rank_pattern": {"q_proj": 5, r"layers\.[02]\.mlp\.up_proj": 2},
    "alpha_pattern": {r"language_model\.layers\.1\.self_attn\.v_proj": 20, "q_proj": 1},
}
VARIANTS: Mapping[str, dict[str, Any]] = {
    "alpha over r": {"target_modules": ATTENTION_AND_MLP},
    "rsLoRA": {"target_modules": ATTENTION_AND_MLP, "use_rslora": True},
    "rank and alpha patterns": {"target_modules": ATTENTION_AND_MLP, **PATTERNS},
    "patterns with rsLoRA": {"target_modules": ATTENTION_AND_MLP, "use_rslora": True, **PATTERNS},
    "targets by a regular expression": {"target_modules": r".*language_model.*\.(q_proj|down_proj)"},
    "all linear layers": {"target_modules": "all-linear"},
    "some layers, some left out": {
        "target_modules": ["q_proj", "fc1"],
        "layers_to_transform": [1],
        "exclude_modules": ["vision_tower.encoder.layers.1.self_attn.q_proj"],
    },
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "multi_modal_projector"]},
    "saved embedding, tied": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved norms": {"target_modules": ["v_proj"], "modules_to_save": ["post_layernorm", "input_layernorm", "norm"]},
    "all biases": {"target_modules": ["q_proj", "fc1"], "bias": "all"},
    "biases of adapted layers": {"target_modules": ["q_proj", "fc1"], "bias": "lora_only"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding and output matrix": {"target_modules": ["embed_tokens", "lm_head"]},
    "DoRA": {"target_modules": ATTENTION_AND_MLP, "use_dora": True},
    "DoRA of all, rsLoRA, patterns": {
        "target_modules": "all-linear",
        "use_dora": True,
        "use_rslora": True,
        "bias": "all",
        **PATTERNS,
    },
}


def make(base: Path, out: Path, variant: str, *, seed: int = 3, dtype: torch.dtype = torch.float32) -> None:
    """Write an adapter of a variant for a base folder; every number that training would move is random."""
    model = peft.get_peft_model(
        transformers_stages.load_model(base), peft.LoraConfig(r=4, lora_alpha=6, **VARIANTS[variant])
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                if "lora_magnitude_vector" in name:
                    parameter.mul_(1 + 0.3 * noise)
                elif "lora_" in name:
                    parameter.copy_(0.5 * noise * parameter.shape[-1] ** -0.5)
                else:
                    parameter.add_(0.3 * noise * parameter.std())
    model.to(dtype).save_pretrained(out)


def record(base: Path, adapters: list[Path], inputs: Inputs) -> dict[str, Array]:
    """All stages as peft computes them, every adapter active."""
    model = peft.PeftModel.from_pretrained(transformers_stages.load_model(base), adapters[0], adapter_name="adapter_0")
    names = [f"adapter_{i}" for i in range(len(adapters))]
    for name, folder in list(zip(names, adapters, strict=True))[1:]:
        model.load_adapter(folder, adapter_name=name)
    model.base_model.set_adapter(names)
    return transformers_stages.record(
        model.base_model.model.eval(), inputs.pixel_values, inputs.ids, inputs.prefix_length
    )


def merge(base: Path, adapter: Path) -> Any:
    """The model that peft merges: one of Transformers."""
    model = peft.PeftModel.from_pretrained(transformers_stages.load_model(base), adapter)
    return model.merge_and_unload().eval()


def largest_difference(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> float:
    """Over all stages, each as a share of its largest number."""
    return max(
        float(np.abs(ours[stage] - value.reshape(ours[stage].shape)).max() / np.abs(ours[stage]).max())
        for stage, value in theirs.items()
    )
