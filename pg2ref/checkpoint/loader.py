"""A checkpoint folder -> config and parameters, strictly: every tensor has its place and its shape, or none loads."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.checkpoint.manifest import BITS_OF, Manifest, read_manifest, unfold
from pg2ref.checkpoint.preprocessor import check_preprocessor
from pg2ref.checkpoint.shards import read_checkpoint_tensors
from pg2ref.checkpoint.tensor_table import (
    LM_HEAD,
    Shapes,
    assemble,
    canonical_name,
    expected_shapes,
    is_ignored,
    is_matrix,
    is_text,
)
from pg2ref.config import PaliGemmaConfig, read_config
from pg2ref.errors import CheckpointError, shown_name
from pg2ref.model.paligemma import Params
from pg2ref.quantized import QuantizedMatrix, Weight

POSITIONS = "vision_tower.embeddings.position_embedding.weight"
EMBEDDING = "language_model.embed_tokens.weight"
WEIGHT_DTYPES = {np.dtype(np.uint16): "bf16", np.dtype(np.float16): "f16", np.dtype(np.float32): "f32"}
LISTED = 12  # problems named one by one in a message; the rest is counted
CHUNK = 1 << 22  # numbers checked at a time for NaN


class Checkpoint(NamedTuple):
    """A loaded folder. The tensors are views of its files; `tensors` has them under the names in the files.

    `weights` is the same with the codes and scales of each quantised matrix put together, under its own name.
    """

    folder: Path
    config: PaliGemmaConfig
    params: Params
    tensors: Mapping[str, Array]
    files: tuple[Path, ...]
    total_bytes: int
    weights: Mapping[str, Weight]
    manifest: Manifest | None  # of a quantised checkpoint

    @property
    def weight_type(self) -> str:
        """The types of the stored weights: `bf16` for the released files, `int8` or `int4` for quantised ones."""
        if self.manifest is not None:
            return self.manifest.to
        dtypes = {tensor.dtype for tensor in self.tensors.values()}
        return "+".join(sorted(WEIGHT_DTYPES[dtype] for dtype in dtypes if dtype in WEIGHT_DTYPES))


def type_name(weight: Weight) -> str:
    """How a stored type is called in messages: uint16 is bf16 (arrays.py), 4 bits are int4."""
    if isinstance(weight, QuantizedMatrix):
        return f"int{weight.bits}"
    return WEIGHT_DTYPES.get(weight.dtype, str(weight.dtype))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json, map the weight files, and check every tensor.

    Raises:
        CheckpointError: all tensors that are missing, unexpected, doubled or of a wrong shape or type, at once.
        ConfigError: config.json cannot be understood.
    """
    config = read_config(folder / "config.json")
    check_preprocessor(folder, config)
    stored = read_checkpoint_tensors(folder)
    manifest = read_manifest(folder)
    weights = unfold(stored.tensors, manifest)
    params = assemble(config, match(weights, config, manifest.to if manifest else None))
    return Checkpoint(folder, config, params, stored.tensors, stored.files, stored.total_bytes, weights, manifest)


def check_vocabulary(checkpoint: Checkpoint, num_pieces: int) -> None:
    """Raises CheckpointError where a piece of the tokenizer has no row in the embedding.

    `<image>` alone, when it is the last piece, needs none.
    """
    rows = checkpoint.config.text.vocab_size
    if num_pieces - (num_pieces == checkpoint.config.image_token_id + 1) > rows:
        raise CheckpointError(
            f"{checkpoint.folder}: the tokenizer has {num_pieces:,} pieces, the embedding {rows:,} rows: they are "
            "not of one checkpoint; copy both again from the same one"
        )


def match(stored: Mapping[str, Weight], config: PaliGemmaConfig, quantized_to: str | None = None) -> dict[str, Weight]:
    """The stored tensors under their canonical names, complete and checked against the table."""
    tensors: dict[str, Weight] = {}
    problems: list[str] = []
    for name, tensor in stored.items():
        canonical = canonical_name(name)
        if is_ignored(canonical):
            continue
        if canonical in tensors:
            problems.append(f"doubled     {shown_name(name)} is another name of a tensor that is there already")
        tensors[canonical] = tensor
    expected = expected_shapes(config)
    if EMBEDDING not in tensors and config.tie_word_embeddings and LM_HEAD in tensors:
        tensors[EMBEDDING] = tensors[LM_HEAD]  # tied, and stored under the other name
    if LM_HEAD in tensors:
        expected[LM_HEAD] = expected[EMBEDDING]
    problems += mismatches(tensors, expected, quantized_to)
    if problems:
        listed = "\n  ".join(problems[:LISTED])
        rest = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise CheckpointError(
            f"the weights do not fit config.json: {count}; take both from the same checkpoint"
            f"{another_resolution(tensors, config)}\n  {listed}{rest}"
        )
    return tensors


def mismatches(tensors: Mapping[str, Weight], expected: Shapes, quantized_to: str | None) -> list[str]:
    """A line for every tensor that is missing, unexpected, or of a wrong shape or type."""
    problems = [f"missing     {name} {shape}" for name, shape in expected.items() if name not in tensors]
    unexpected = ((name, tensor) for name, tensor in tensors.items() if name not in expected)
    problems += [f"unexpected  {shown_name(name)} {tensor.shape}" for name, tensor in unexpected]
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.shape != shape:
            problems.append(f"wrong shape {name}: expected {shape}, got {tensor.shape}")
        elif tensor is not None and not is_stored_as(tensor, types := allowed_types(name, quantized_to)):
            problems.append(f"wrong type  {name}: expected {', '.join(types)}, got {type_name(tensor)}")
    return problems


def is_stored_as(weight: Weight, types: tuple[str, ...]) -> bool:
    """Whether a weight is of one of the types; an array of plain integers is of none, `int8` either."""
    is_weight = isinstance(weight, QuantizedMatrix) or weight.dtype in WEIGHT_DTYPES
    return is_weight and type_name(weight) in types


def allowed_types(canonical: str, quantized_to: str | None) -> tuple[str, ...]:
    """What a tensor may be stored as: the matrices of a quantised language model are all of one type."""
    plain = tuple(WEIGHT_DTYPES.values())
    if quantized_to is None or not is_matrix(canonical):
        return plain
    return (quantized_to,) if is_text(canonical) else (*plain, *BITS_OF)


def another_resolution(tensors: Mapping[str, Weight], config: PaliGemmaConfig) -> str:
    """What to add to a message where the position table is one of another image size: 224, 448 and 896 px mixed up."""
    table, vision = tensors.get(POSITIONS), config.vision
    stored_px = math.isqrt(table.shape[0]) * vision.patch_size if table is not None and len(table.shape) == 2 else 0
    if stored_px in (0, vision.image_size):
        return ""
    return f" (the weights are for images of {stored_px} px, config.json is for {vision.image_size} px)"


def not_finite_tensors(
    tensors: Mapping[str, Array], on_bytes: Callable[[int], None] = lambda count: None
) -> Iterable[str]:
    """Names of the tensors that hold NaN or infinity; reads everything, calls `on_bytes` for what it has read."""
    for name, tensor in tensors.items():
        flat = tensor.reshape(-1)
        finite = True
        for start in range(0, flat.size, CHUNK):
            chunk = flat[start : start + CHUNK]
            finite = finite and bool(is_finite(chunk).all())
            on_bytes(chunk.nbytes)
        if not finite:
            yield name


def is_finite(values: Array) -> Array:
    """Whether each stored number is one; bf16 bits, floats and integers."""
    if values.dtype == np.uint16:  # bf16: NaN and infinity have every exponent bit set
        return (values & 0x7F80) != 0x7F80
    return np.isfinite(values)
