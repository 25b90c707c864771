"""The nine published PaliGemma 2 models: three decoders, each at three resolutions."""

from collections.abc import Mapping
from typing import Any

from pg2ref.config import LAYER_TYPES, Gemma2Config, PaliGemmaConfig, SiglipConfig

# Gemma 2 2B, 9B and 27B (arXiv:2408.00118, table 1).
TEXT_SIZES: Mapping[str, Mapping[str, Any]] = {
    "3b": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
    },
    "10b": {
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
    },
    "28b": {
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_hidden_layers": 46,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
}
IMAGE_SIZES = (224, 448, 896)


def _text(sizes: Mapping[str, Any]) -> Gemma2Config:
    return Gemma2Config(
        **sizes,
        vocab_size=257216,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        sliding_window=4096,
        layer_types=tuple(LAYER_TYPES[layer % 2] for layer in range(sizes["num_hidden_layers"])),
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        max_position_embeddings=8192,
    )


def _vision(image_size: int) -> SiglipConfig:
    """SigLIP So400m/14; the resolutions differ in their position table alone."""
    return SiglipConfig(
        image_size=image_size,
        patch_size=14,
        num_channels=3,
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        layer_norm_eps=1e-6,
    )


PUBLISHED: Mapping[str, PaliGemmaConfig] = {
    f"{name}-{image_size}": PaliGemmaConfig(
        vision=_vision(image_size),
        text=_text(sizes),
        image_token_id=257152,
        eos_token_ids=(1,),
        tie_word_embeddings=True,
    )
    for name, sizes in TEXT_SIZES.items()
    for image_size in IMAGE_SIZES
}
