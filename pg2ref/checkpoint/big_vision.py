"""A checkpoint as its authors trained it: one .npz file of big_vision, f32, bf16 or f16.

Its matrices lie the other way round, (inputs, outputs), heads apart, and the layers of a tower stand in one array:

    img/embedding/kernel                     (p, p, C, E)    llm/embedder/input_embedding       (V, D)
    img/pos_embedding                        (1, I, E)       llm/layers/attn/q_einsum/w         (L, N, D, H)
    img/Transformer/encoderblock/...                         llm/layers/attn/kv_einsum/w        (L, 2, K, D, H)
      .../query, key, value/kernel           (L, E, N, H)    llm/layers/attn/attn_vec_einsum/w  (L, N, H, D)
      .../out/kernel                         (L, N, H, E)    llm/layers/mlp/gating_einsum       (L, 2, D, F)
      .../MlpBlock_0/Dense_0, Dense_1/kernel (L, E, M) ...   llm/layers/mlp/linear              (L, F, D)
    img/head/kernel                          (E, D)          llm/layers/..._norm/scale          (L, D)

(big_vision models/vit.py, models/ppp/gemma.py; Transformers convert_paligemma2_weights_to_hf.py.) Every matrix but the
embedding is turned once, when the file is opened, into memory of its own: as much as the file has, less the embedding,
which is looked into where it lies. A compressed file needs room for its largest array besides.

The file does not say what its shapes do not: caps, window and query scale are those of the published models, unless a
config.json lies beside it.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pg2ref.arrays import Array
from pg2ref.checkpoint.loader import LISTED, Checkpoint, match
from pg2ref.checkpoint.npz import Archive, Header, map_content, open_archive, read_content, read_header
from pg2ref.checkpoint.safetensors_file import forget_pages
from pg2ref.checkpoint.shards import name_some
from pg2ref.checkpoint.tensor_table import assemble, released_name
from pg2ref.config import LAYER_TYPES, Gemma2Config, PaliGemmaConfig, SiglipConfig, read_config
from pg2ref.errors import CheckpointError, brief, shown_name
from pg2ref.published import PUBLISHED

PREFIX = "params/"
NOT_WEIGHTS = ("opt/", "chrono/")  # what a checkpoint of a training holds besides
BF16 = np.dtype("<u2")
STORED: Mapping[
    str, np.dtype[Any]
] = {  # by what the file calls it; V2 is how NumPy saves a type of two bytes that it does not know
    "|V2": BF16,
    "<V2": BF16,
    "<u2": BF16,
    "<f2": np.dtype("<f2"),
    "<f4": np.dtype("<f4"),
}
IMAGE_TOKEN_ID, END_OF_TEXT = 257152, 1  # <image> has no row in big_vision's embedding, and needs none
BLOCKS = "img/Transformer/encoderblock/"
ATTENTION = BLOCKS + "MultiHeadDotProductAttention_0/"
POST_NORM = "llm/layers/post_attention_norm/scale"
LARGEST_AXIS = 1 << 24

Turn = Callable[[Array], Array]  # one array of the file, or of one layer, to one of the checkpoint
Headers = Mapping[str, Header]


def as_it_is(array: Array) -> Array:
    """A vector, or the embedding."""
    return array


def turned(array: Array) -> Array:
    """(inputs, outputs) to (outputs, inputs)."""
    return array.T


def patches(array: Array) -> Array:
    """(y, x, C, E) to (E, C, y, x)."""
    return array.transpose(3, 2, 0, 1)


def first(array: Array) -> Array:
    """(1, I, E) to (I, E)."""
    return array[0]


def flat(array: Array) -> Array:
    """(N, H), biases of heads, to (N * H,)."""
    return array.reshape(-1)


def heads_last(array: Array) -> Array:
    """(E, N, H) to (N * H, E)."""
    return array.reshape(len(array), -1).T


def heads_first(array: Array) -> Array:
    """(N, H, D) to (D, N * H)."""
    return array.reshape(-1, array.shape[-1]).T


def heads_of_rows(array: Array) -> Array:
    """(N, D, H) to (N * H, D)."""
    return array.transpose(0, 2, 1).reshape(-1, array.shape[1])


def half(index: int, turn: Turn) -> Turn:
    """One of the two that stand together: key and value, gate and up."""
    return lambda array: turn(array[index])


# Canonical name (checkpoint/tensor_table.py) -> where its numbers are; {i} is the layer, the first axis there.
VISION_PLACES: Mapping[str, tuple[str, Turn]] = {
    "vision_tower.embeddings.patch_embedding.weight": ("img/embedding/kernel", patches),
    "vision_tower.embeddings.patch_embedding.bias": ("img/embedding/bias", as_it_is),
    "vision_tower.embeddings.position_embedding.weight": ("img/pos_embedding", first),
    "vision_tower.post_layernorm.weight": ("img/Transformer/encoder_norm/scale", as_it_is),
    "vision_tower.post_layernorm.bias": ("img/Transformer/encoder_norm/bias", as_it_is),
    "multi_modal_projector.linear.weight": ("img/head/kernel", turned),
    "multi_modal_projector.linear.bias": ("img/head/bias", as_it_is),
    **{
        f"vision_tower.encoder.layers.{{i}}.{ours}.{kind}": (f"{BLOCKS}{theirs}/{stored}", as_it_is)
        for ours, theirs in (("layer_norm1", "LayerNorm_0"), ("layer_norm2", "LayerNorm_1"))
        for kind, stored in (("weight", "scale"), ("bias", "bias"))
    },
    **{
        f"vision_tower.encoder.layers.{{i}}.self_attn.{ours}_proj.{kind}": (f"{ATTENTION}{theirs}/{stored}", turn)
        for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value"))
        for kind, stored, turn in (("weight", "kernel", heads_last), ("bias", "bias", flat))
    },
    "vision_tower.encoder.layers.{i}.self_attn.out_proj.weight": (f"{ATTENTION}out/kernel", heads_first),
    "vision_tower.encoder.layers.{i}.self_attn.out_proj.bias": (f"{ATTENTION}out/bias", as_it_is),
    **{
        f"vision_tower.encoder.layers.{{i}}.mlp.{ours}.{kind}": (f"{BLOCKS}MlpBlock_0/{theirs}/{stored}", turn)
        for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1"))
        for kind, stored, turn in (("weight", "kernel", turned), ("bias", "bias", as_it_is))
    },
}
TEXT_PLACES: Mapping[str, tuple[str, Turn]] = {
    "language_model.embed_tokens.weight": ("llm/embedder/input_embedding", as_it_is),
    "language_model.norm.weight": ("llm/final_norm/scale", as_it_is),
    "language_model.layers.{i}.self_attn.q_proj.weight": ("llm/layers/attn/q_einsum/w", heads_of_rows),
    "language_model.layers.{i}.self_attn.k_proj.weight": ("llm/layers/attn/kv_einsum/w", half(0, heads_of_rows)),
    "language_model.layers.{i}.self_attn.v_proj.weight": ("llm/layers/attn/kv_einsum/w", half(1, heads_of_rows)),
    "language_model.layers.{i}.self_attn.o_proj.weight": ("llm/layers/attn/attn_vec_einsum/w", heads_first),
    "language_model.layers.{i}.mlp.gate_proj.weight": ("llm/layers/mlp/gating_einsum", half(0, turned)),
    "language_model.layers.{i}.mlp.up_proj.weight": ("llm/layers/mlp/gating_einsum", half(1, turned)),
    "language_model.layers.{i}.mlp.down_proj.weight": ("llm/layers/mlp/linear", turned),
    "language_model.layers.{i}.input_layernorm.weight": ("llm/layers/pre_attention_norm/scale", as_it_is),
}
GEMMA_2_NORMS: Mapping[str, tuple[str, Turn]] = {
    "language_model.layers.{i}.post_attention_layernorm.weight": (POST_NORM, as_it_is),
    "language_model.layers.{i}.pre_feedforward_layernorm.weight": ("llm/layers/pre_ffw_norm/scale", as_it_is),
    "language_model.layers.{i}.post_feedforward_layernorm.weight": ("llm/layers/post_ffw_norm/scale", as_it_is),
}
GEMMA_1_NORMS: Mapping[str, tuple[str, Turn]] = {  # whose name for the norm before the MLP is this (tensor_table.py)
    "language_model.layers.{i}.post_attention_layernorm.weight": ("llm/layers/pre_ffw_norm/scale", as_it_is),
}
NUM_AXES = {  # of the arrays that a config is inferred from
    "img/embedding/kernel": 4,
    "img/pos_embedding": 3,
    f"{ATTENTION}query/kernel": 4,
    f"{BLOCKS}MlpBlock_0/Dense_0/kernel": 3,
    "llm/embedder/input_embedding": 2,
    "llm/layers/attn/q_einsum/w": 4,
    "llm/layers/attn/kv_einsum/w": 5,
    "llm/layers/mlp/linear": 3,
}


def load_big_vision(path: Path) -> Checkpoint:
    """Read an .npz of big_vision; its tensors bear the names of the release.

    Raises:
        CheckpointError: the file is damaged, or arrays are missing, unexpected, or of another type or shape.
        ConfigError: the config.json beside it cannot be understood.
    """
    with open_archive(path) as archive:
        headers = _headers(archive)
        config = _config(path, headers)
        places = {**VISION_PLACES, **TEXT_PLACES, **(GEMMA_2_NORMS if config.text.post_norms else GEMMA_1_NORMS)}
        _check_names(path.name, headers, {key for key, _ in places.values()})
        tensors = _turn_all(archive, headers, places, config)
    weights = {released_name(name): tensor for name, tensor in tensors.items()}
    params = assemble(config, match(weights, config))
    return Checkpoint(path.parent, config, params, weights, (path,), path.stat().st_size, weights, None)


def read_big_vision_config(path: Path) -> PaliGemmaConfig:
    """The config of such a file, from its headers alone; raises as `load_big_vision`."""
    with open_archive(path) as archive:
        return _config(path, _headers(archive))


def _config(path: Path, headers: Headers) -> PaliGemmaConfig:
    beside = path.parent / "config.json"
    return read_config(beside) if beside.is_file() else infer_config(headers, path.name)


def _headers(archive: Archive) -> dict[str, Header]:
    """Of all that are weights, without the prefix that some files have."""
    headers = {}
    for name in archive.members:
        if name.startswith(NOT_WEIGHTS):
            continue
        header = read_header(archive, name)
        if header.descr not in STORED or not all(0 < size < LARGEST_AXIS for size in header.shape):
            raise CheckpointError(
                f"{archive.name}: {shown_name(name)}: expected f32, bf16 or f16, got {brief(header.descr)} "
                f"{brief(header.shape)}"
            )
        headers[name.removeprefix(PREFIX)] = header
    return headers


def _check_names(file_name: str, headers: Headers, expected: set[str]) -> None:
    missing, unexpected = expected - set(headers), set(headers) - expected
    if missing or unexpected:
        parts = [f"missing {name_some(missing, LISTED)}"] if missing else []
        parts += [f"unexpected {name_some(unexpected, LISTED)}"] if unexpected else []
        raise CheckpointError(
            f"{file_name}: expected the arrays of a PaliGemma that big_vision saved: {'; '.join(parts)}; give such a "
            "file, with its layers in one array"
        )


def _turn_all(
    archive: Archive, headers: Headers, places: Mapping[str, tuple[str, Turn]], config: PaliGemmaConfig
) -> dict[str, Array]:
    """Every tensor under its canonical name; one array of the file after the other, so that few are in memory."""
    of_key: dict[str, list[tuple[str, Turn]]] = {}
    for name, (key, turn) in places.items():
        of_key.setdefault(key, []).append((name, turn))
    tensors: dict[str, Array] = {}
    for key, targets in of_key.items():
        array = _read(archive, key, headers[key])
        for name, turn in targets:
            if "{i}" not in name:
                tensors[name] = _laid_out(archive, key, array, turn)
                continue
            layers = config.text if name.startswith("language_model") else config.vision
            if len(array) != layers.num_hidden_layers:
                raise CheckpointError(
                    f"{archive.name}: {key}: expected {layers.num_hidden_layers} layers, got {len(array)}"
                )
            for i, layer in enumerate(array):
                tensors[name.format(i=i)] = _laid_out(archive, key, layer, turn)
                forget_pages(array)
    return tensors


def _read(archive: Archive, key: str, header: Header) -> Array:
    name = key if key in archive.members else PREFIX + key
    dtype = STORED[header.descr]
    mapped = map_content(archive, name, header, dtype)
    return read_content(archive, name, header, dtype) if mapped is None else mapped


def _laid_out(archive: Archive, key: str, array: Array, turn: Turn) -> Array:
    """An array as the checkpoint has it, rows one after the other: a view of the file only where nothing moved."""
    try:
        return np.ascontiguousarray(turn(array))
    except (ValueError, IndexError):
        raise CheckpointError(f"{archive.name}: {key}: no such array has the shape {array.shape}") from None


def infer_config(headers: Headers, file_name: str) -> PaliGemmaConfig:
    """What the shapes say, and what is the same in all published models.

    Raises:
        CheckpointError: an array that says something is missing, or of another shape.
    """
    for name, axes in NUM_AXES.items():
        if name not in headers or len(headers[name].shape) != axes:
            got = headers[name].shape if name in headers else "none"
            raise CheckpointError(
                f"{file_name}: expected the arrays of a PaliGemma that big_vision saved, among them {name} with {axes} "
                f"axes, got {got}"
            )
    shapes = {name: headers[name].shape for name in NUM_AXES}
    patch, _, channels, E = shapes["img/embedding/kernel"]
    layers, _, heads, _ = shapes[f"{ATTENTION}query/kernel"]
    vision = SiglipConfig(
        image_size=math.isqrt(shapes["img/pos_embedding"][1]) * patch,
        patch_size=patch,
        num_channels=channels,
        hidden_size=E,
        intermediate_size=shapes[f"{BLOCKS}MlpBlock_0/Dense_0/kernel"][2],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        layer_norm_eps=1e-6,
    )
    text = _infer_text(shapes, is_gemma_2=POST_NORM in headers)
    return PaliGemmaConfig(
        vision=vision,
        text=text,
        image_token_id=IMAGE_TOKEN_ID,
        eos_token_ids=(END_OF_TEXT,),
        tie_word_embeddings=True,
    )


def _infer_text(shapes: Mapping[str, tuple[int, ...]], *, is_gemma_2: bool) -> Gemma2Config:
    V, D = shapes["llm/embedder/input_embedding"]
    L, N, _, H = shapes["llm/layers/attn/q_einsum/w"]
    alike = [one.text for one in PUBLISHED.values() if (one.text.hidden_size, one.text.num_attention_heads) == (D, N)]
    return Gemma2Config(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=shapes["llm/layers/mlp/linear"][1],
        num_hidden_layers=L,
        num_attention_heads=N,
        num_key_value_heads=shapes["llm/layers/attn/kv_einsum/w"][2],
        head_dim=H,
        query_pre_attn_scalar=alike[0].query_pre_attn_scalar if alike and is_gemma_2 else H,  # not in the shapes
        attn_logit_softcapping=50.0 if is_gemma_2 else None,
        final_logit_softcapping=30.0 if is_gemma_2 else None,
        sliding_window=4096 if is_gemma_2 else None,
        layer_types=tuple(LAYER_TYPES[i % 2] if is_gemma_2 else "full_attention" for i in range(L)),
        post_norms=is_gemma_2,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        max_position_embeddings=8192,
    )
