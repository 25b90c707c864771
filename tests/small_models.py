"""Small random models, each of which makes one part of the architecture matter, and the inputs they are run on.

The parity tests, the golden records and the injected faults all use them. Numbers are chosen so that a mistake
shows: a window below the prefix, soft caps that bite, a query scale that is not the head width's, norm weights
away from 0 and 1.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import random_checkpoint

from pg2ref.arrays import Array
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.model import paligemma
from pg2ref.model.paligemma import PaliGemma
from pg2ref.trace import Trace

BASE: Mapping[str, Any] = {
    "model_type": "paligemma",
    "text_config": {
        "model_type": "gemma2",
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "sliding_window": 5,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 6.0,
        "vocab_size": 304,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "image_token_index": 299,
    "projection_dim": 32,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SUFFIX_LENGTH = 6
MAX_NEW_TOKENS = 32


class Case(NamedTuple):
    """What differs from BASE, and how the model is fed."""

    text: Mapping[str, Any] = {}
    vision: Mapping[str, Any] = {}
    top: Mapping[str, Any] = {}
    num_images: int = 1
    text_length: int = 9  # of the prompt, without image tokens
    causal: bool = False  # no token is marked as prefix
    omitted: tuple[str, ...] = ()  # fields of BASE's text_config that the file leaves out


CASES: Mapping[str, Case] = {
    "base": Case(),
    "no_caps": Case(text={"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "odd_heads": Case(
        text={
            "hidden_size": 36,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "query_pre_attn_scalar": 6,
        },
        top={"projection_dim": 36},
    ),
    "image_id_outside_vocabulary": Case(text={"vocab_size": 299}),
    "two_images": Case(num_images=2),
    "causal": Case(causal=True),
    "window_beyond_text": Case(text={"sliding_window": 64}),
    "window_below_image": Case(text={"sliding_window": 3}, vision={"image_size": 42}),
    "layer_types": Case(
        text={"layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]}
    ),
    "large_eps": Case(text={"rms_norm_eps": 0.02}, vision={"layer_norm_eps": 0.01}),
    "own_head": Case(top={"tie_word_embeddings": False}),
    "end_of_text": Case(top={"eos_token_id": [190, 59]}),  # base answers 59 as its eleventh token, 190 later
    "no_window": Case(text={"sliding_window": None}),
    "gemma_1": Case(  # PaliGemma 1; one key head for all queries, as in the released models
        text={"model_type": "gemma", "num_key_value_heads": 1},
        omitted=("query_pre_attn_scalar", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping"),
    ),
    "omitted": Case(  # 2048: what Transformers writes there when it saves, whatever the width
        top={"hidden_size": 2048},
        omitted=("query_pre_attn_scalar", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping"),
    ),
}


class Inputs(NamedTuple):
    """What one case is run on."""

    pixel_values: Array  # (images, C, Y, X)
    ids: list[int]  # prefix and suffix
    prefix_length: int  # rows that read each other in both directions: 0 in a causal case
    prompt_length: int  # where the suffix begins


def config_json(case: Case) -> dict[str, Any]:
    """config.json of a case."""
    config: dict[str, Any] = copy.deepcopy({**BASE, **case.top})
    config["text_config"] |= case.text
    config["vision_config"] |= case.vision
    for name in case.omitted:
        del config["text_config"][name]
    return config


def has_window(case: Case) -> bool:
    """Whether sliding_window is a number: where it is null, Transformers 5.23 generates without a cache only."""
    return config_json(case)["text_config"].get("sliding_window", 4096) is not None


def write_folder(folder: Path, case: Case) -> None:
    """The case's checkpoint, without a tokenizer (its vocabulary is too small for one)."""
    random_checkpoint.write_checkpoint(folder, config_json(case), seed=11, tokenizer=False)


def make_inputs(case: Case, seed: int = 5) -> Inputs:
    """Seeded pixels and ids in the order of a PaliGemma prompt: images, <bos>, text, newline, suffix."""
    rng = np.random.default_rng(seed)
    vision = config_json(case)["vision_config"]
    side = vision["image_size"]
    image_tokens = case.num_images * (side // vision["patch_size"]) ** 2
    text = rng.integers(3, 290, case.text_length + SUFFIX_LENGTH - 1).tolist()
    ids = [BASE["image_token_index"]] * image_tokens + [BASE["bos_token_id"], *text]
    prompt_length = image_tokens + case.text_length
    pixel_values = rng.uniform(-1, 1, (case.num_images, 3, side, side)).astype(np.float32)
    return Inputs(pixel_values, ids, 0 if case.causal else prompt_length, prompt_length)


def open_model(folder: Path, dtype: Any = np.float32) -> PaliGemma:
    """The folder's model, without a tokenizer."""
    checkpoint = load_checkpoint(folder)
    return PaliGemma(checkpoint.params, checkpoint.config, np.dtype(dtype))


def our_stages(model: PaliGemma, inputs: Inputs) -> dict[str, Array]:
    """Every stage of one pass over prefix and suffix, logits of all rows."""
    trace = Trace()
    image_embeddings = paligemma.encode_images(model, list(inputs.pixel_values), tap=trace)
    paligemma.forward(model, image_embeddings, inputs.ids, inputs.prefix_length, tap=trace)
    return trace.stages
