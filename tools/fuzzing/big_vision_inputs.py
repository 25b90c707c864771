"""Checkpoints of big_vision: archives damaged, arrays of other shapes and types, and a config.json that contradicts."""

import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.mutation import Rng, json_bytes, lay_out, mutate, mutate_json, two_files
from fuzzing.npz_inputs import archive_of, bomb, npy_file, rebuilt
from fuzzing.target import MB, Target
from pg2ref.checkpoint.big_vision import (
    ATTENTION,
    BLOCKS,
    PREFIX,
    infer_config,
    load_big_vision,
    read_big_vision_config,
)
from pg2ref.checkpoint.config_json import CONFIG_NAME, config_fields
from pg2ref.checkpoint.npz import Header
from pg2ref.checkpoint.tensor_table import expected_shapes, released_name

LAYERS = 2
SHAPES: Mapping[str, tuple[int, ...]] = {  # E 4, 2 heads, M 6, 4 patches of 2 x 2; D 6, 4 heads of 2 on 2, F 5, V 7
    "img/embedding/kernel": (2, 2, 3, 4),
    "img/embedding/bias": (4,),
    "img/pos_embedding": (1, 4, 4),
    "img/Transformer/encoder_norm/scale": (4,),
    "img/Transformer/encoder_norm/bias": (4,),
    "img/head/kernel": (4, 6),
    "img/head/bias": (6,),
    **{f"{BLOCKS}LayerNorm_{i}/{kind}": (LAYERS, 4) for i in (0, 1) for kind in ("scale", "bias")},
    **{f"{ATTENTION}{name}/kernel": (LAYERS, 4, 2, 2) for name in ("query", "key", "value")},
    **{f"{ATTENTION}{name}/bias": (LAYERS, 2, 2) for name in ("query", "key", "value")},
    f"{ATTENTION}out/kernel": (LAYERS, 2, 2, 4),
    f"{ATTENTION}out/bias": (LAYERS, 4),
    f"{BLOCKS}MlpBlock_0/Dense_0/kernel": (LAYERS, 4, 6),
    f"{BLOCKS}MlpBlock_0/Dense_0/bias": (LAYERS, 6),
    f"{BLOCKS}MlpBlock_0/Dense_1/kernel": (LAYERS, 6, 4),
    f"{BLOCKS}MlpBlock_0/Dense_1/bias": (LAYERS, 4),
    "llm/embedder/input_embedding": (7, 6),
    "llm/final_norm/scale": (6,),
    "llm/layers/attn/q_einsum/w": (LAYERS, 4, 6, 2),
    "llm/layers/attn/kv_einsum/w": (LAYERS, 2, 2, 6, 2),
    "llm/layers/attn/attn_vec_einsum/w": (LAYERS, 4, 2, 6),
    "llm/layers/mlp/gating_einsum": (LAYERS, 2, 6, 5),
    "llm/layers/mlp/linear": (LAYERS, 5, 6),
    "llm/layers/pre_attention_norm/scale": (LAYERS, 6),
    "llm/layers/pre_ffw_norm/scale": (LAYERS, 6),
}
GEMMA_2_NORMS = {f"llm/layers/post_{name}_norm/scale": (LAYERS, 6) for name in ("attention", "ffw")}
TYPES = ("V2", "<u2", "<f2", "<f4")  # that a file may have
OTHER_TYPES = ("<f8", ">f4", "<i2", "<i4", "?", "S2")


def npy(shape: tuple[int, ...], kind: str, fortran_order: bool = False) -> bytes:
    """An .npy file of ones or zeros; every type here has some."""
    array = np.zeros(shape, kind) if kind in ("V2", "S2") else np.ones(shape, kind)
    return npy_file(np.asfortranarray(array) if fortran_order else array)


@cache
def members(is_gemma_2: bool, kind: str) -> dict[str, bytes]:
    """Name -> .npy file of each array; half of the types with the prefix that some files have."""
    prefix = PREFIX if kind in ("<u2", "<f2") else ""
    shapes = {**SHAPES, **GEMMA_2_NORMS} if is_gemma_2 else SHAPES
    return {f"{prefix}{name}.npy": npy(shape, kind) for name, shape in shapes.items()}


@cache
def seeds() -> tuple[bytes, ...]:
    """Archives of both decoders, each type, packed in each way."""
    packings = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return tuple(
        archive_of(members(is_gemma_2, kind).items(), packing)
        for is_gemma_2 in (True, False)
        for kind, packing in zip(TYPES, packings, strict=True)
    )


@cache
def config_beside(is_gemma_2: bool) -> Mapping[str, Any]:
    """The config.json that such an archive may lie beside."""
    shapes = {**SHAPES, **GEMMA_2_NORMS} if is_gemma_2 else SHAPES
    headers = {name: Header(shape, False, "<f4", 0) for name, shape in shapes.items()}
    return config_fields(infer_config(headers, "made"))


def reshaped(rng: Rng) -> bytes:
    """A whole archive in which one to three arrays have another shape, type or order."""
    named = dict(members(rng.random() < 0.7, rng.choice(TYPES)))
    for name in rng.sample(list(named), rng.choice((1, 1, 2, 3))):
        shape = list({**SHAPES, **GEMMA_2_NORMS}[name.removeprefix(PREFIX).removesuffix(".npy")])
        at, how = rng.randrange(len(shape)), rng.random()
        if how < 0.4:
            shape[at] = rng.choice((0, 1, 2, 3, shape[at] + 1, 2 * shape[at]))
        elif how < 0.5:
            rng.shuffle(shape)
        elif how < 0.6:
            shape.insert(at, rng.choice((1, 2)))
        elif how < 0.7:
            del shape[at]
        kind = rng.choice(TYPES if rng.random() < 0.8 else OTHER_TYPES)
        named[name] = npy(tuple(shape), kind, rng.random() < 0.3)
    return archive_of(named.items(), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def make_checkpoint(rng: Rng) -> bytes:
    """An archive, and sometimes a config.json beside it."""
    how = rng.random()
    if how < 0.05:
        archive = rng.choice(seeds())
    elif how < 0.45:
        archive = mutate(rng.choice(seeds()), rng, seeds())
    elif how < 0.75:
        archive = reshaped(rng)
    else:
        named = members(rng.random() < 0.7, rng.choice(TYPES))
        archive = rebuilt(rng, named) if how < 0.999 else bomb(rng, named)
    if rng.random() < 0.7:
        return two_files(b"", archive)
    beside = config_beside(rng.random() < 0.7)
    return two_files(json_bytes(mutate_json(beside, rng) if rng.random() < 0.7 else beside, rng), archive)


def read_checkpoint(content: bytes, folder: Path) -> None:
    """Every tensor of the config is there in its shape, laid out as the kernels read it."""
    path = folder / "pt.npz"
    lay_out(content, folder / CONFIG_NAME, path)
    checkpoint = load_big_vision(path)
    assert checkpoint.config == read_big_vision_config(path)
    expected = {released_name(name): shape for name, shape in expected_shapes(checkpoint.config).items()}
    assert {name: tensor.shape for name, tensor in checkpoint.weights.items()} == expected
    for tensor in checkpoint.weights.values():
        assert tensor.flags.c_contiguous
        tensor.tobytes()  # of a view: lies in the file


TARGETS = (Target("big_vision", make_checkpoint, read_checkpoint, 64 * MB),)
