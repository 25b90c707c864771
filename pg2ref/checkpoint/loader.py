"""A checkpoint folder -> config and parameters, strictly: every tensor has its place and its shape, or none loads."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.checkpoint.preprocessor import check_preprocessor
from pg2ref.checkpoint.shards import read_checkpoint_tensors
from pg2ref.checkpoint.tensor_table import LM_HEAD, Shapes, assemble, canonical_name, expected_shapes, is_ignored
from pg2ref.config import PaliGemmaConfig, read_config
from pg2ref.errors import CheckpointError
from pg2ref.model.paligemma import Params

POSITIONS = "vision_tower.embeddings.position_embedding.weight"
EMBEDDING = "language_model.embed_tokens.weight"
WEIGHT_DTYPES = {np.dtype(np.uint16): "bf16", np.dtype(np.float16): "f16", np.dtype(np.float32): "f32"}
LISTED = 12  # problems named one by one in a message; the rest is counted
CHUNK = 1 << 22  # numbers checked at a time for NaN


class Checkpoint(NamedTuple):
    """A loaded folder. The tensors are views of its files; `tensors` has them under the names in the files."""

    folder: Path
    config: PaliGemmaConfig
    params: Params
    tensors: Mapping[str, Array]
    files: tuple[Path, ...]
    total_bytes: int

    @property
    def weight_type(self) -> str:
        """The types of the stored weights, `bf16` for the released files."""
        dtypes = {tensor.dtype for tensor in self.tensors.values()}
        return "+".join(sorted(WEIGHT_DTYPES[dtype] for dtype in dtypes if dtype in WEIGHT_DTYPES))


def type_name(dtype: np.dtype[Any]) -> str:
    """How a stored type is called in messages: uint16 is bf16 (arrays.py)."""
    return WEIGHT_DTYPES.get(dtype, str(dtype))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json, map the weight files, and check every tensor.

    Raises:
        CheckpointError: all tensors that are missing, unexpected, doubled or of a wrong shape or type, at once.
        ConfigError: config.json cannot be understood.
    """
    config = read_config(folder / "config.json")
    check_preprocessor(folder, config)
    stored = read_checkpoint_tensors(folder)
    tensors = match(stored.tensors, config)
    return Checkpoint(folder, config, assemble(config, tensors), stored.tensors, stored.files, stored.total_bytes)


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


def match(stored: Mapping[str, Array], config: PaliGemmaConfig) -> dict[str, Array]:
    """The stored tensors under their canonical names, complete and checked against the table."""
    tensors: dict[str, Array] = {}
    problems: list[str] = []
    for name, tensor in stored.items():
        canonical = canonical_name(name)
        if is_ignored(canonical):
            continue
        if canonical in tensors:
            problems.append(f"doubled     {name} is another name of a tensor that is there already")
        tensors[canonical] = tensor
    expected = expected_shapes(config)
    if EMBEDDING not in tensors and config.tie_word_embeddings and LM_HEAD in tensors:
        tensors[EMBEDDING] = tensors[LM_HEAD]  # tied, and stored under the other name
    if LM_HEAD in tensors:
        expected[LM_HEAD] = expected[EMBEDDING]
    problems += mismatches(tensors, expected)
    if problems:
        listed = "\n  ".join(problems[:LISTED])
        rest = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise CheckpointError(
            f"the weights do not fit config.json: {count}; take both from the same checkpoint"
            f"{another_resolution(tensors, config)}\n  {listed}{rest}"
        )
    return tensors


def mismatches(tensors: Mapping[str, Array], expected: Shapes) -> list[str]:
    """A line for every tensor that is missing, unexpected, or of a wrong shape or type."""
    problems = [f"missing     {name} {shape}" for name, shape in expected.items() if name not in tensors]
    problems += [f"unexpected  {name} {tensor.shape}" for name, tensor in tensors.items() if name not in expected]
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.shape != shape:
            problems.append(f"wrong shape {name}: expected {shape}, got {tensor.shape}")
        elif tensor is not None and tensor.dtype not in WEIGHT_DTYPES:
            problems.append(
                f"wrong type  {name}: expected {', '.join(WEIGHT_DTYPES.values())}, got {type_name(tensor.dtype)}"
            )
    return problems


def another_resolution(tensors: Mapping[str, Array], config: PaliGemmaConfig) -> str:
    """What to add to a message where the position table is one of another image size: 224, 448 and 896 px mixed up."""
    table, vision = tensors.get(POSITIONS), config.vision
    stored_px = math.isqrt(table.shape[0]) * vision.patch_size if table is not None and table.ndim == 2 else 0
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
            finite = finite and bool(_is_finite(chunk).all())
            on_bytes(chunk.nbytes)
        if not finite:
            yield name


def _is_finite(values: Array) -> Array:
    if values.dtype == np.uint16:  # bf16: NaN and infinity have every exponent bit set
        return (values & 0x7F80) != 0x7F80
    return np.isfinite(values)
