"""Writes a checkpoint the way big_vision saves one: by its own names and shapes, in one .npz file."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pg2ref.arrays import Array, bf16_to_f32
from pg2ref.config import PaliGemmaConfig


def arrays_of(weights: Mapping[str, Array], config: PaliGemmaConfig) -> dict[str, Array]:
    """The arrays of a checkpoint whose weights, by canonical names, are bf16."""
    text = config.text

    def stack(pattern: str, layers: int, *shape: int, axes: tuple[int, ...]) -> Array:
        """A matrix (outputs, inputs) of each layer, its axes taken apart and put in another order."""
        return np.stack([weights[pattern.format(i)].reshape(shape).transpose(axes) for i in range(layers)])

    L, N, K, H, D, F = (
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
        text.head_dim,
        text.hidden_size,
        text.intermediate_size,
    )
    at = "language_model.layers.{}."
    key, value = (stack(f"{at}self_attn.{p}_proj.weight", L, K, H, D, axes=(0, 2, 1)) for p in "kv")
    gate, up = (stack(f"{at}mlp.{p}_proj.weight", L, F, D, axes=(1, 0)) for p in ("gate", "up"))
    arrays = {
        "llm/embedder/input_embedding": weights["language_model.embed_tokens.weight"],
        "llm/final_norm/scale": weights["language_model.norm.weight"],
        "llm/layers/attn/q_einsum/w": stack(f"{at}self_attn.q_proj.weight", L, N, H, D, axes=(0, 2, 1)),
        "llm/layers/attn/kv_einsum/w": np.stack([key, value], axis=1),
        "llm/layers/attn/attn_vec_einsum/w": stack(f"{at}self_attn.o_proj.weight", L, D, N, H, axes=(1, 2, 0)),
        "llm/layers/mlp/gating_einsum": np.stack([gate, up], axis=1),
        "llm/layers/mlp/linear": stack(f"{at}mlp.down_proj.weight", L, D, F, axes=(1, 0)),
    }
    norms = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "post_attention_layernorm"}
    if text.post_norms:
        names = ("post_attention", "pre_feedforward", "post_feedforward")
        norms |= {
            theirs: f"{ours}_layernorm"
            for theirs, ours in zip(("post_attention_norm", "pre_ffw_norm", "post_ffw_norm"), names, strict=True)
        }
    for theirs, ours in norms.items():
        arrays[f"llm/layers/{theirs}/scale"] = stack(f"{at}{ours}.weight", L, D, axes=(0,))
    return arrays | _vision(weights, config, stack)


def _vision(weights: Mapping[str, Array], config: PaliGemmaConfig, stack: Any) -> dict[str, Array]:
    vision = config.vision
    L, N, E, M = vision.num_hidden_layers, vision.num_attention_heads, vision.hidden_size, vision.intermediate_size
    at, block = "vision_tower.encoder.layers.{}.", "img/Transformer/encoderblock/"
    attention = block + "MultiHeadDotProductAttention_0/"
    arrays = {
        "img/embedding/kernel": weights["vision_tower.embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0),
        "img/embedding/bias": weights["vision_tower.embeddings.patch_embedding.bias"],
        "img/pos_embedding": weights["vision_tower.embeddings.position_embedding.weight"][None],
        "img/Transformer/encoder_norm/scale": weights["vision_tower.post_layernorm.weight"],
        "img/Transformer/encoder_norm/bias": weights["vision_tower.post_layernorm.bias"],
        "img/head/kernel": weights["multi_modal_projector.linear.weight"].T,
        "img/head/bias": weights["multi_modal_projector.linear.bias"],
        attention + "out/kernel": stack(f"{at}self_attn.out_proj.weight", L, E, N, E // N, axes=(1, 2, 0)),
        attention + "out/bias": stack(f"{at}self_attn.out_proj.bias", L, E, axes=(0,)),
        block + "MlpBlock_0/Dense_0/kernel": stack(f"{at}mlp.fc1.weight", L, M, E, axes=(1, 0)),
        block + "MlpBlock_0/Dense_0/bias": stack(f"{at}mlp.fc1.bias", L, M, axes=(0,)),
        block + "MlpBlock_0/Dense_1/kernel": stack(f"{at}mlp.fc2.weight", L, E, M, axes=(1, 0)),
        block + "MlpBlock_0/Dense_1/bias": stack(f"{at}mlp.fc2.bias", L, E, axes=(0,)),
    }
    for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v")):
        kernel = stack(f"{at}self_attn.{ours}_proj.weight", L, N, E // N, E, axes=(2, 0, 1))
        arrays[f"{attention}{theirs}/kernel"] = kernel
        arrays[f"{attention}{theirs}/bias"] = stack(f"{at}self_attn.{ours}_proj.bias", L, N, E // N, axes=(0, 1))
    for norm in (0, 1):
        for theirs, ours in (("scale", "weight"), ("bias", "bias")):
            stacked = stack(f"{at}layer_norm{norm + 1}.{ours}", L, E, axes=(0,))
            arrays[f"{block}LayerNorm_{norm}/{theirs}"] = stacked
    return arrays


def stored_as(arrays: Mapping[str, Array], kind: str) -> dict[str, Array]:
    """bf16 bits as a file has them: `V2` as JAX's type is saved, `uint16`, or widened to `f2` or `f4`."""
    if kind == "V2":
        return {name: np.ascontiguousarray(array).view("V2") for name, array in arrays.items()}
    return {name: array if kind == "uint16" else bf16_to_f32(array).astype(kind) for name, array in arrays.items()}


def write(path: Path, arrays: Mapping[str, Array], *, compressed: bool = False, **members: bytes) -> Path:
    """An archive of these arrays; some members replaced by other bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, np.ascontiguousarray(array), allow_pickle=True)
            file.writestr(f"{name}.npy", members.get(name, content.getvalue()))
    return path
