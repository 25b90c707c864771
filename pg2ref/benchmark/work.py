"""How much there is to do: multiplications and additions by kind, and bytes to be read, counted from shapes.

Counted are the products of matrices and of attention, a product and its addition as two operations. Attention counts
the keys that a query may read, none that a mask hides. Norms, activations, soft caps, rotation and softmax are left
out: they are about a thousandth of the operations, and no multiplying unit runs at its peak in them.

Bytes are those that a token of the answer cannot do without: every weight of the decoder, the output matrix included,
one row of the embedding, and the keys and values that the token may read.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pg2ref.adapted import AdaptedMatrix, LinearWeight
from pg2ref.arrays import Array
from pg2ref.config import Gemma2Config
from pg2ref.model import masks
from pg2ref.model.kv_cache import KVCache
from pg2ref.model.paligemma import PaliGemma
from pg2ref.quantized import QuantizedMatrix


class Work(NamedTuple):
    """Operations by the kind of product (f32, bf16, int8), and bytes that must come from memory."""

    operations: Mapping[str, int]
    bytes_read: int


def vision_work(model: PaliGemma, precision: str) -> Work:
    """One image through the vision tower and the projector."""
    params, vision = model.params.vision_tower, model.config.vision
    weights = [params.patch_embedding.weight, model.params.multi_modal_projector.weight]
    for layer in params.layers:
        weights += [affine.weight for affine in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj)]
        weights += [layer.fc1.weight, layer.fc2.weight]
    I = vision.num_image_tokens  # noqa: E741 - the dimension key
    operations = linear_operations(weights, I, precision)
    operations[precision] += vision.num_hidden_layers * 4 * I * I * vision.hidden_size
    return Work(operations, stored_bytes((params, model.params.multi_modal_projector)))


def prefill_work(model: PaliGemma, num_tokens: int, precision: str) -> Work:
    """A prompt of `num_tokens`, image tokens included, and the scores of the token after it."""
    params, text = model.params.language_model, model.config.text
    operations = linear_operations(decoder_matrices(model), num_tokens, precision)
    operations += linear_operations([params.lm_head], 1, precision)
    read_keys = keys_read(text, np.arange(num_tokens), num_tokens, model.window_policy)
    operations[precision] += 4 * text.num_attention_heads * text.head_dim * read_keys
    return Work(operations, stored_bytes((params.layers, params.norm, params.lm_head)))


def decode_work(model: PaliGemma, cache: KVCache, precision: str) -> Work:
    """One token more, after those of `cache`."""
    params, text = model.params.language_model, model.config.text
    operations = linear_operations([*decoder_matrices(model), params.lm_head], 1, precision)
    read_keys = keys_read(text, np.array([cache.length]), cache.prefix_length, model.window_policy)
    operations[precision] += 4 * text.num_attention_heads * text.head_dim * read_keys
    row_bytes = stored_bytes(params.embed_tokens) // text.vocab_size
    key_bytes = 2 * text.num_key_value_heads * text.head_dim * cache.key_LSKH.itemsize
    weight_bytes = stored_bytes((params.layers, params.norm, params.lm_head))
    return Work(operations, weight_bytes + row_bytes + read_keys * key_bytes)


def decoder_matrices(model: PaliGemma) -> list[LinearWeight]:
    """All matrices of the decoder's layers."""
    leaves = [weight for layer in model.params.language_model.layers for weight in layer if weight is not None]
    return [weight for weight in leaves if len(weight.shape) == 2]


def linear_operations(weights: Sequence[LinearWeight], rows: int, precision: str) -> "Counter[str]":
    """Operations of `rows` times each matrix; quantised ones of either width are multiplied as int8."""
    operations: Counter[str] = Counter()
    for weight in weights:
        stored = weight.base if isinstance(weight, AdaptedMatrix) else weight
        operations["int8" if isinstance(stored, QuantizedMatrix) else precision] += 2 * rows * weight.size
    return operations


def keys_read(text: Gemma2Config, slot_T: Array, prefix_length: int, policy: str) -> int:
    """Keys that the queries in these slots may read, summed over queries and layers."""
    total = 0
    for kind in text.layer_types:
        window = text.sliding_window if kind == "sliding_attention" else None
        first_T, last_T = masks.prefix_lm(slot_T, prefix_length=prefix_length, window=window, policy=policy)
        total += int((last_T + 1 - first_T).sum())
    return total


def stored_bytes(weights: Any) -> int:
    """Bytes of an array or quantised matrix, or of all of them in nested tuples; None is a norm that Gemma 1 lacks."""
    return int(weights.nbytes) if hasattr(weights, "nbytes") else sum(map(stored_bytes, weights or ()))
