"""config.json for a checkpoint that came without one: what config.py reads back as the same numbers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pg2ref.config import PaliGemmaConfig

CONFIG_NAME = "config.json"


def config_fields(config: PaliGemmaConfig) -> dict[str, Any]:
    """The fields that Transformers reads, under its names."""
    text, vision = dataclasses.asdict(config.text), dataclasses.asdict(config.vision)
    is_gemma_2 = text.pop("post_norms")
    if is_gemma_2:
        text["layer_types"] = list(text["layer_types"])
    else:  # Gemma 1 has no such fields
        for name in ("layer_types", "query_pre_attn_scalar", "sliding_window"):
            del text[name]
        del text["attn_logit_softcapping"], text["final_logit_softcapping"]
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "image_token_index": config.image_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "bos_token_id": 2,
        "pad_token_id": 0,
        "projection_dim": config.text.hidden_size,
        "hidden_size": config.text.hidden_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "text_config": {"model_type": "gemma2" if is_gemma_2 else "gemma", **text},
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
    }


def write_missing_config(folder: Path, config: PaliGemmaConfig) -> None:
    """Write config.json where the folder has none."""
    path = folder / CONFIG_NAME
    if not path.exists():
        path.write_text(json.dumps(config_fields(config), indent=2) + "\n", encoding="utf-8")
