"""Step 4 of 9: pixel values -> image features, by SigLIP So400m/14 (arXiv:2303.15343). Next: projector.py.

A plain vision transformer: patches, learnt positions, pre-norm blocks with full attention, a final LayerNorm. No
class token, no pooling head. What leaves here is *after* the final LayerNorm.
"""

from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array, widen
from pg2ref.config import SiglipConfig
from pg2ref.model import masks
from pg2ref.model.backend import REFERENCE, Ops
from pg2ref.model.ops import Affine
from pg2ref.trace import Tap, no_tap


class SiglipLayer(NamedTuple):
    """One block; the fields have the checkpoint's leaf names."""

    layer_norm1: Affine
    q_proj: Affine
    k_proj: Affine
    v_proj: Affine
    out_proj: Affine
    layer_norm2: Affine
    fc1: Affine
    fc2: Affine


class PatchEmbedding(NamedTuple):
    """A convolution whose stride is its size: a linear layer on patches."""

    weight: Array  # (E, C, patch, patch)
    bias: Array


class SiglipParams(NamedTuple):
    """The vision tower's weights."""

    patch_embedding: PatchEmbedding
    position_embedding: Array  # (I, E)
    layers: tuple[SiglipLayer, ...]
    post_layernorm: Affine


def encode(
    params: SiglipParams,
    config: SiglipConfig,
    pixel_values_CYX: Array,
    *,
    ops: Ops = REFERENCE,
    tap: Tap = no_tap,
) -> Array:
    """Image features `features_IE` of one image, one row a patch, row-major."""
    hidden_IE = embed_patches(params, config, tap("pixel_values", pixel_values_CYX), ops, tap)
    for index, layer in enumerate(params.layers):
        hidden_IE = encode_layer(layer, config, hidden_IE, f"vision/layer_{index:02d}", ops, tap)
    return finish(params, config, hidden_IE, ops, tap)


def embed_patches(params: SiglipParams, config: SiglipConfig, pixel_values_CYX: Array, ops: Ops, tap: Tap) -> Array:
    """The first hidden state: each patch through one linear layer, plus what was learnt for its position."""
    patches_IP = patchify(pixel_values_CYX, config.patch_size)
    weight, bias = params.patch_embedding
    embeddings_IE = ops.linear(patches_IP, weight.reshape(weight.shape[0], -1), bias)
    embeddings_IE = ops.add(embeddings_IE, widen(params.position_embedding, embeddings_IE.dtype))
    return tap("vision/patch_embeddings", embeddings_IE)


def finish(params: SiglipParams, config: SiglipConfig, hidden_IE: Array, ops: Ops, tap: Tap) -> Array:
    """The final LayerNorm."""
    return tap("vision/post_layernorm", ops.layer_norm(hidden_IE, *params.post_layernorm, config.layer_norm_eps))


def patchify(pixel_values_CYX: Array, patch_size: int) -> Array:
    """Cut the image into squares, row by row; a patch is flattened as (channel, y, x), as the weight is."""
    C, height_px, width_px = pixel_values_CYX.shape
    rows, columns = height_px // patch_size, width_px // patch_size
    grid = pixel_values_CYX.reshape(C, rows, patch_size, columns, patch_size)
    return np.ascontiguousarray(grid.transpose(1, 3, 0, 2, 4)).reshape(rows * columns, -1)


def encode_layer(layer: SiglipLayer, config: SiglipConfig, hidden_IE: Array, stage: str, ops: Ops, tap: Tap) -> Array:
    """One block: attention over all patches, then the MLP, each after a LayerNorm and added to the stream."""
    normed_IE = tap(f"{stage}/layer_norm1", ops.layer_norm(hidden_IE, *layer.layer_norm1, config.layer_norm_eps))
    attended_IE = attend(layer, config, normed_IE, stage, ops, tap)
    hidden_IE = tap(f"{stage}/attention_residual", ops.add(hidden_IE, attended_IE))
    normed_IE = tap(f"{stage}/layer_norm2", ops.layer_norm(hidden_IE, *layer.layer_norm2, config.layer_norm_eps))
    active_IM = tap(f"{stage}/gelu", ops.gelu(ops.linear(normed_IE, *layer.fc1)))
    return tap(f"{stage}/out", ops.add(hidden_IE, tap(f"{stage}/fc2", ops.linear(active_IM, *layer.fc2))))


def attend(layer: SiglipLayer, config: SiglipConfig, normed_IE: Array, stage: str, ops: Ops, tap: Tap) -> Array:
    """Multi-head attention without mask or soft cap."""
    I, N, H = normed_IE.shape[0], config.num_attention_heads, config.head_dim  # noqa: E741 - the dimension key
    weights, biases = zip(layer.q_proj, layer.k_proj, layer.v_proj, strict=True)
    query_IE, key_IE, value_IE = ops.linear_each(normed_IE, weights, biases)
    query_INH = tap(f"{stage}/query", query_IE.reshape(I, N, H))
    key_INH = tap(f"{stage}/key", key_IE.reshape(I, N, H))
    value_INH = tap(f"{stage}/value", value_IE.reshape(I, N, H))
    ranges, scale = masks.everything(I, I), H**-0.5
    if tap.wants(f"{stage}/attention_weights"):
        weights_NII = ops.attention_weights(query_INH, key_INH, *ranges, scale=scale, logit_cap=None)
        tap(f"{stage}/attention_weights", weights_NII)
    heads_INH = ops.attend(query_INH, key_INH, value_INH, *ranges, scale=scale, logit_cap=None)
    heads_IE = tap(f"{stage}/attention_out", heads_INH.reshape(I, N * H))
    return tap(f"{stage}/out_proj", ops.linear(heads_IE, *layer.out_proj))
