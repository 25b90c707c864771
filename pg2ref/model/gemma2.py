"""Step 6 of 9: embeddings -> logits, by the Gemma 2 decoder (arXiv:2408.00118). Next: paligemma.py.

Side steps: ops.py (norms, soft caps, attention), rope.py, masks.py, kv_cache.py. Rows of several sequences may share
the T axis: linear layers and norms do not care whose row it is, attention goes sequence by sequence.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.config import Gemma2Config
from pg2ref.errors import ShapeError
from pg2ref.model import masks, rope
from pg2ref.model.backend import REFERENCE, Ops
from pg2ref.model.kv_cache import KVCache
from pg2ref.model.masks import KeyRanges
from pg2ref.quantized import Weight, pick_rows
from pg2ref.trace import Tap, no_tap


class DecoderLayer(NamedTuple):
    """One block; the fields have the checkpoint's leaf names, matrices lie as in the file: (outputs, inputs)."""

    input_layernorm: Array
    q_proj: Weight
    k_proj: Weight
    v_proj: Weight
    o_proj: Weight
    post_attention_layernorm: Array
    pre_feedforward_layernorm: Array
    gate_proj: Weight
    up_proj: Weight
    down_proj: Weight
    post_feedforward_layernorm: Array


class Gemma2Params(NamedTuple):
    """The decoder's weights. `lm_head` is `embed_tokens` itself unless the file holds one of its own."""

    embed_tokens: Weight  # (V, D)
    layers: tuple[DecoderLayer, ...]
    norm: Array
    lm_head: Weight  # (V, D)


class Attention(NamedTuple):
    """What every layer of one call shares: where its rows stand and what they may read."""

    caches: Sequence[KVCache]
    cos_TR: Array
    sin_TR: Array
    full: Sequence[KeyRanges]  # one a sequence
    sliding: Sequence[KeyRanges]


def embed(
    params: Gemma2Params, config: Gemma2Config, ids_T: Array, dtype: np.dtype[Any], *, ops: Ops = REFERENCE
) -> Array:
    """Text embeddings `text_embeddings_TD`, times the square root of the width."""
    if ids_T.size and (ids_T.min() < 0 or ids_T.max() >= config.vocab_size):
        raise ShapeError(f"token ids must lie in 0 to {config.vocab_size - 1}, got {ids_T.min()} to {ids_T.max()}")
    return ops.scale(pick_rows(params.embed_tokens, ids_T, dtype), config.embedding_scale)


def decode(
    params: Gemma2Params,
    config: Gemma2Config,
    hidden_TD: Array,
    caches: Sequence[KVCache],
    *,
    window_policy: str = "transformers",
    ops: Ops = REFERENCE,
    tap: Tap = no_tap,
) -> Array:
    """Run all layers and the final norm over new rows, and store their keys and values in the caches.

    The rows of `hidden_TD` belong to the sequences of `caches` in order, equally many to each: the whole prompt of
    one sequence (prefill), or one new token of each of several (decoding).
    """
    attention = locate_rows(config, hidden_TD, caches, window_policy, ops)
    for index, layer in enumerate(params.layers):
        hidden_TD = decode_layer(layer, config, hidden_TD, index, attention, ops, tap)
    for cache in caches:
        cache.advance(hidden_TD.shape[0] // len(caches))
    return tap("text/final_norm", ops.rms_norm(hidden_TD, params.norm, config.rms_norm_eps))


def locate_rows(
    config: Gemma2Config, hidden_TD: Array, caches: Sequence[KVCache], window_policy: str, ops: Ops
) -> Attention:
    """Positions, rotation table and key ranges of new rows.

    Raises:
        ShapeError: the rows end inside a prefix, whose rows read each other and so must come in one call.
    """
    new = np.arange(hidden_TD.shape[0] // len(caches))
    for cache in caches:
        if cache.length + len(new) < cache.prefix_length:
            raise ShapeError(f"{len(new)} rows after {cache.length} end inside a prefix of {cache.prefix_length}")
    slots = [cache.length + new for cache in caches]
    positions_T = np.concatenate(slots) + rope.FIRST_POSITION
    cos_TR, sin_TR = ops.rotation_table(positions_T, config.head_dim, config.rope_theta, hidden_TD.dtype)
    full, sliding = (
        [
            masks.prefix_lm(slot_T, prefix_length=cache.prefix_length, window=window, policy=window_policy)
            for slot_T, cache in zip(slots, caches, strict=True)
        ]
        for window in (None, config.sliding_window)
    )
    return Attention(caches, cos_TR, sin_TR, full, sliding)


def decode_layer(
    layer: DecoderLayer,
    config: Gemma2Config,
    hidden_TD: Array,
    index: int,
    attention: Attention,
    ops: Ops,
    tap: Tap,
) -> Array:
    """One block: attention, then the gated MLP; a norm before and after each, then added to the stream."""
    stage, eps = f"text/layer_{index:02d}", config.rms_norm_eps
    normed_TD = tap(f"{stage}/input_layernorm", ops.rms_norm(hidden_TD, layer.input_layernorm, eps))
    attended_TD = attend(layer, config, normed_TD, index, attention, ops, tap)
    branch_TD = ops.rms_norm(attended_TD, layer.post_attention_layernorm, eps)
    hidden_TD = ops.add(hidden_TD, tap(f"{stage}/post_attention_layernorm", branch_TD))
    normed_TD = ops.rms_norm(hidden_TD, layer.pre_feedforward_layernorm, eps)
    tap(f"{stage}/pre_feedforward_layernorm", normed_TD)
    gated_TF = tap(f"{stage}/gated_gelu", ops.gated_linear(normed_TD, layer.gate_proj, layer.up_proj))
    branch_TD = tap(f"{stage}/down_proj", ops.linear(gated_TF, layer.down_proj))
    branch_TD = ops.rms_norm(branch_TD, layer.post_feedforward_layernorm, eps)
    return tap(f"{stage}/out", ops.add(hidden_TD, tap(f"{stage}/post_feedforward_layernorm", branch_TD)))


def attend(
    layer: DecoderLayer,
    config: Gemma2Config,
    normed_TD: Array,
    index: int,
    attention: Attention,
    ops: Ops,
    tap: Tap,
) -> Array:
    """Grouped-query attention with RoPE and soft cap; the window comes with the layer's type."""
    stage, T = f"text/layer_{index:02d}", normed_TD.shape[0]
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    query_TX, key_TX, value_TX = ops.linear_each(normed_TD, [layer.q_proj, layer.k_proj, layer.v_proj])
    value_TKH = tap(f"{stage}/value", value_TX.reshape(T, K, H))
    query_TNH = tap(f"{stage}/query", ops.rotate(query_TX.reshape(T, N, H), attention.cos_TR, attention.sin_TR))
    key_TKH = tap(f"{stage}/key", ops.rotate(key_TX.reshape(T, K, H), attention.cos_TR, attention.sin_TR))

    heads_TNH = np.empty_like(query_TNH)
    ranges = attention.sliding if config.layer_types[index] == "sliding_attention" else attention.full
    options: dict[str, Any] = {"scale": config.query_scale, "logit_cap": config.attn_logit_softcapping}
    rows_each = T // len(attention.caches)
    for sequence, cache in enumerate(attention.caches):
        rows = slice(sequence * rows_each, (sequence + 1) * rows_each)
        key_SKH, value_SKH = cache.write(index, key_TKH[rows], value_TKH[rows])
        heads_TNH[rows] = ops.attend(query_TNH[rows], key_SKH, value_SKH, *ranges[sequence], **options)
        sequence_stage = stage if sequence == 0 else f"sequence_{sequence}/{stage}"
        if tap.wants(f"{sequence_stage}/attention_weights"):
            weights_NTS = ops.attention_weights(query_TNH[rows], key_SKH, *ranges[sequence], **options)
            tap(f"{sequence_stage}/attention_weights", weights_NTS)
    out_TX = tap(f"{stage}/attention_out", heads_TNH.reshape(T, N * H))
    return tap(f"{stage}/o_proj", ops.linear(out_TX, layer.o_proj))


def logits(
    params: Gemma2Params,
    config: Gemma2Config,
    hidden_TD: Array,
    *,
    ops: Ops = REFERENCE,
    tap: Tap = no_tap,
) -> Array:
    """Scores `logits_TV` over the whole vocabulary, padded rows included, soft-capped."""
    logits_TV = tap("logits_before_cap", ops.linear(hidden_TD, params.lm_head))
    return tap("logits", ops.soft_cap(logits_TV, config.final_logit_softcapping))
