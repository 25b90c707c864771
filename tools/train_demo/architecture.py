"""The built-in model: PaliGemma 2 in a few million parameters, in Transformers' own classes, every feature live.

The window is smaller than the prefix, the scale of the queries is not the head's width, both soft caps bite, queries
share keys, the head is tied.
"""

import math
from typing import Any

import torch
from scene_store import IMAGE_PX
from torch import nn
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

LOCATIONS, CODES = 1024, 128


def model_config(first_location: int, vocab_size: int) -> dict[str, Any]:
    """config.json in the released layout, for a vocabulary whose `<loc0000>` has that id."""
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "image_token_index": first_location + LOCATIONS + CODES,
        "projection_dim": 192,
        "text_config": {
            "model_type": "gemma2",
            "hidden_size": 192,
            "intermediate_size": 640,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 48,
            "query_pre_attn_scalar": 64,
            "sliding_window": 64,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "vocab_size": vocab_size,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": IMAGE_PX,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }


def build(config_json: dict[str, Any]) -> PaliGemmaForConditionalGeneration:
    """The model with fresh weights, in eager attention: the fastest at this size, and the only one with soft caps."""
    config = PaliGemmaConfig(**config_json)
    config._attn_implementation = "eager"
    model = PaliGemmaForConditionalGeneration(config)
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: PaliGemmaForConditionalGeneration) -> None:
    """Gains behind attention and MLP that let a deep stack begin near the identity, and weights of unit output."""
    text = model.config.text_config
    language = model.model.language_model
    gain = (2 * text.num_hidden_layers) ** -0.5
    for layer in language.layers:
        layer.post_attention_layernorm.weight.fill_(gain - 1)
        layer.post_feedforward_layernorm.weight.fill_(gain - 1)
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.8 / math.sqrt(module.in_features))
    language.embed_tokens.weight.normal_(0, text.hidden_size**-0.5)
    model.model.multi_modal_projector.linear.weight.normal_(0, text.hidden_size**-0.5)
    model.model.multi_modal_projector.linear.bias.zero_()
