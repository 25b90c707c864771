"""Mistakes in the decoder's attention: heads, scale, soft cap, and who may read whom."""

from typing import Any

import numpy as np

from pg2ref.arrays import Array, widen
from pg2ref.model.kv_cache import KVCache
from pg2ref.model.masks import KeyRanges
from pg2ref.model.ops import soft_cap, softmax
from pg2ref.model.paligemma import PaliGemma
from pg2ref.parity.bugs.run import Bug, Run, with_operations, with_text_fields


def _tile_key_heads(run: Run) -> Run:
    ops = run.model.ops

    def tiled(query_TNH: Array, array_SKH: Array) -> Array:
        return np.tile(array_SKH, (1, query_TNH.shape[1] // array_SKH.shape[1], 1))

    def attend(query_TNH: Array, key_SKH: Array, value_SKH: Array, *ranges: Array, **options: Any) -> Array:
        return ops.attend(query_TNH, tiled(query_TNH, key_SKH), tiled(query_TNH, value_SKH), *ranges, **options)

    def attention_weights(query_TNH: Array, key_SKH: Array, *ranges: Array, **options: Any) -> Array:
        return ops.attention_weights(query_TNH, tiled(query_TNH, key_SKH), *ranges, **options)

    return with_operations(run, attend=attend, attention_weights=attention_weights)


def _cap_after_mask(run: Run) -> Run:
    ops = run.model.ops

    def attention_weights(
        query_TNH: Array, key_SKH: Array, *ranges: Array, scale: float, logit_cap: float | None
    ) -> Array:
        """Where there is a cap, minus infinity becomes minus the cap: keys that are not allowed are read a little."""
        if logit_cap is None:
            return ops.attention_weights(query_TNH, key_SKH, *ranges, scale=scale, logit_cap=None)
        key_SNH = widen(key_SKH, np.dtype(np.float64)).repeat(query_TNH.shape[1] // key_SKH.shape[1], axis=1)
        logits_NTS = np.einsum("tnh,snh->nts", query_TNH.astype(np.float64), key_SNH, optimize=True) * scale
        masked_NTS = np.where(KeyRanges(*ranges).allowed_TS(len(key_SKH)), logits_NTS, np.finfo(np.float32).min)
        return softmax(soft_cap(masked_NTS, logit_cap)).astype(query_TNH.dtype)

    def attend(query_TNH: Array, key_SKH: Array, value_SKH: Array, *ranges: Array, **options: Any) -> Array:
        if options["logit_cap"] is None:
            return ops.attend(query_TNH, key_SKH, value_SKH, *ranges, **options)
        value_SNH = widen(value_SKH, query_TNH.dtype).repeat(query_TNH.shape[1] // value_SKH.shape[1], axis=1)
        weights_NTS = attention_weights(query_TNH, key_SKH, *ranges, **options)
        return np.einsum("nts,snh->tnh", weights_NTS, value_SNH, optimize=True)

    return with_operations(run, attend=attend, attention_weights=attention_weights)


class CausalPaliGemma(PaliGemma):
    """A model whose caches know of no prefix."""

    def empty_cache(self, capacity_tokens: int, prefix_length: int) -> KVCache:
        """A cache for one sequence, every row of which reads backwards alone."""
        return super().empty_cache(capacity_tokens, prefix_length=0)


def _read_everything(run: Run) -> Run:
    ops = run.model.ops

    def attend(
        query_TNH: Array, key_SKH: Array, value_SKH: Array, first_key_T: Array, last_key_T: Array, **options: Any
    ) -> Array:
        return ops.attend(query_TNH, key_SKH, value_SKH, first_key_T, _last(last_key_T, key_SKH), **options)

    def attention_weights(
        query_TNH: Array, key_SKH: Array, first_key_T: Array, last_key_T: Array, **options: Any
    ) -> Array:
        return ops.attention_weights(query_TNH, key_SKH, first_key_T, _last(last_key_T, key_SKH), **options)

    return with_operations(run, attend=attend, attention_weights=attention_weights)


def _last(last_key_T: Array, key_SKH: Array) -> Array:
    return np.full_like(last_key_T, len(key_SKH) - 1)


def _widen_window(run: Run, keys: int) -> Run:
    window = run.model.config.text.sliding_window
    return run if window is None else with_text_fields(run, sliding_window=window + keys)


def _swap_layer_types(run: Run) -> Run:
    other = {"sliding_attention": "full_attention", "full_attention": "sliding_attention"}
    return with_text_fields(run, layer_types=tuple(other[kind] for kind in run.model.config.text.layer_types))


BUGS = (
    Bug(
        "gqa-tiled",
        "Key heads are tiled (0 1 0 1) for the query heads that share them, not repeated (0 0 1 1).",
        ("decoder",),
        ("onnx/onnx#7274", "apple/axlearn#842"),
        _tile_key_heads,
    ),
    Bug(
        "query-scale",
        "Queries are scaled by the head width, not by query_pre_attn_scalar: differs at 28B.",
        ("decoder",),
        ("antonellof/ferrox#40", "ggml-org/llama.cpp#8197"),
        lambda run: with_text_fields(run, query_pre_attn_scalar=run.model.config.text.head_dim),
    ),
    Bug(
        "missing-attention-cap",
        "Attention logits are not soft-capped, as in fused attention that knows no cap.",
        ("decoder",),
        ("vllm-project/vllm-metal#665", "sgl-project/sglang#33915"),
        lambda run: with_text_fields(run, attn_logit_softcapping=None),
    ),
    Bug(
        "cap-after-mask",
        "The mask comes before the soft cap, which makes its minus infinity finite again.",
        ("decoder",),
        ("onnx/onnx#7865",),
        _cap_after_mask,
    ),
    Bug(
        "causal-prefix",
        "Image and prompt read backwards only, as in a language model: token_type_ids were lost.",
        ("decoder",),
        ("huggingface/transformers#40917", "vllm-project/vllm#27938", "hiyouga/LlamaFactory#9135"),
        lambda run: run._replace(model=CausalPaliGemma(*run.model)),
    ),
    Bug(
        "answer-sees-ahead",
        "Answer tokens read those behind them: the mask allows everything.",
        ("decoder",),
        ("huggingface/transformers#30918",),
        _read_everything,
    ),
    Bug(
        "window-too-large",
        "A sliding layer lets a query read one key more than the window holds.",
        ("decoder",),
        ("NVIDIA-NeMo/Megatron-Bridge#2656", "ml-explore/mlx-lm#390", "NVIDIA-NeMo/Speech#9672"),
        lambda run: _widen_window(run, 1),
    ),
    Bug(
        "window-too-small",
        "A sliding layer lets a query read one key less than the window holds: it does not count itself.",
        ("decoder",),
        (),
        lambda run: _widen_window(run, -1),
    ),
    Bug(
        "window-in-prefix",
        "Sliding layers cut the prefix too, where it is longer than the window: 896 px.",
        ("decoder",),
        ("gemma.cpp, gemma/attention.cc", "Transformers 4.4x"),
        lambda run: run._replace(model=run.model._replace(window_policy="transformers_4")),
    ),
    Bug(
        "no-window",
        "Sliding layers read everything.",
        ("decoder",),
        ("huggingface/transformers#35691", "big_vision, models/ppp/gemma.py"),
        lambda run: with_text_fields(run, sliding_window=None),
    ),
    Bug(
        "layers-swapped",
        "Odd layers slide and even ones do not.",
        ("decoder",),
        ("huggingface/transformers#31775", "NVIDIA-NeMo/Megatron-Bridge#4875", "NVIDIA-NeMo/Speech#9672"),
        _swap_layer_types,
    ),
)
