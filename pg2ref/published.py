"""The published models: three decoders at three resolutions each are PaliGemma 2, one at the same three PaliGemma 1."""

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
# Gemma 1 2B, PaliGemma 1's decoder (Transformers configuration_paligemma.py); one key head serves all queries.
GEMMA_2B = Gemma2Config(
    hidden_size=2048,
    intermediate_size=16384,
    num_hidden_layers=18,
    num_attention_heads=8,
    num_key_value_heads=1,
    head_dim=256,
    query_pre_attn_scalar=256,
    vocab_size=257216,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    sliding_window=None,
    layer_types=("full_attention",) * 18,
    post_norms=False,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    max_position_embeddings=8192,
)
IMAGE_SIZES = (224, 448, 896)


def _text(sizes: Mapping[str, Any]) -> Gemma2Config:
    return Gemma2Config(
        **sizes,
        vocab_size=257216,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        sliding_window=4096,
        layer_types=tuple(LAYER_TYPES[layer % 2] for layer in range(sizes["num_hidden_layers"])),
        post_norms=True,
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


def _whole(text: Gemma2Config, image_size: int) -> PaliGemmaConfig:
    return PaliGemmaConfig(
        vision=_vision(image_size),
        text=text,
        image_token_id=257152,
        eos_token_ids=(1,),
        tie_word_embeddings=True,
    )


PUBLISHED: Mapping[str, PaliGemmaConfig] = {
    f"{name}-{image_size}": _whole(_text(sizes), image_size)
    for name, sizes in TEXT_SIZES.items()
    for image_size in IMAGE_SIZES
}
PUBLISHED_1: Mapping[str, PaliGemmaConfig] = {
    f"3b-{image_size}": _whole(GEMMA_2B, image_size) for image_size in IMAGE_SIZES
}
