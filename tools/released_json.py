"""The JSON files of a checkpoint as Google released them, for any published size and for a small model."""

from collections.abc import Mapping
from typing import Any

from pg2ref.config import PaliGemmaConfig
from pg2ref.published import PUBLISHED

# Every Gemma 2 feature live in 0.5 M parameters: a window smaller than the prefix, a query scale that is not the head
# width's, soft caps that bite, grouped queries, untrained widths that are no powers of two.
SMALL: Mapping[str, Any] = {
    "text_config": {
        "model_type": "gemma2",
        "hidden_size": 72,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "sliding_window": 9,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 7.0,
        "vocab_size": 2432,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 48,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "image_token_index": 2352,
    "projection_dim": 72,
}


def released_config(size: str) -> dict[str, Any]:
    """config.json of a size as the released files have it: only what differs from Transformers' classes."""
    fixed = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    if size == "small":
        return {**fixed, **SMALL}
    config = PUBLISHED[size]
    text, vision = config.text, config.vision
    return {
        **fixed,
        "_vocab_size": 257152,
        "image_token_index": config.image_token_id,
        "num_hidden_layers": text.num_hidden_layers,
        "projection_dim": text.hidden_size,
        "text_config": {
            "model_type": "gemma2",
            "attn_logit_softcapping": text.attn_logit_softcapping,
            "cache_implementation": "hybrid",
            "eos_token_id": [1, 107],
            "final_logit_softcapping": text.final_logit_softcapping,
            "head_dim": text.head_dim,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_attention_heads": text.num_attention_heads,
            "num_hidden_layers": text.num_hidden_layers,
            "num_image_tokens": vision.num_image_tokens,
            "num_key_value_heads": text.num_key_value_heads,
            "query_pre_attn_scalar": text.query_pre_attn_scalar,
            "sliding_window": text.sliding_window,
            "torch_dtype": "bfloat16",
            "vocab_size": text.vocab_size,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "intermediate_size": vision.intermediate_size,
            "num_attention_heads": vision.num_attention_heads,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_image_tokens": vision.num_image_tokens,
            "num_positions": vision.num_image_tokens,
            "patch_size": vision.patch_size,
            "projection_dim": text.hidden_size,
            "torch_dtype": "bfloat16",
            "vision_use_head": False,
        },
    }


def cut_config(size: str) -> dict[str, Any]:
    """config.json of a size's own widths, heads, scales and window, but two layers a tower and the small vocabulary."""
    config = released_config(size)
    if size == "small":
        return config
    config["text_config"] |= {"num_hidden_layers": 2, "vocab_size": SMALL["text_config"]["vocab_size"]}
    config["vision_config"] |= {"num_hidden_layers": 2}
    return config | {"image_token_index": SMALL["image_token_index"], "num_hidden_layers": 2}


def preprocessor_config(config: PaliGemmaConfig) -> dict[str, Any]:
    """preprocessor_config.json as released."""
    side = config.vision.image_size
    return {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": config.vision.num_image_tokens,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "PaliGemmaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": side, "width": side},
    }
