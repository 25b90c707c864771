"""Writes a checkpoint folder with adapters in its weights: an ordinary checkpoint, for any program that reads one.

Names, types and all that is no weights are the source's. Sums are made in float32 and rounded once. An embedding that
no longer is the output matrix too (apply.py) gets one beside it, and config.json says that they are not tied.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pg2ref.adapted import AdaptedMatrix, LinearWeight, adapted_rows
from pg2ref.adapters.adapter import Adapter
from pg2ref.adapters.apply import adapt, base_weights
from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.checkpoint.config_json import CONFIG_NAME, write_missing_config
from pg2ref.checkpoint.loader import EMBEDDING, Checkpoint, is_finite
from pg2ref.checkpoint.new_folder import MAX_SHARD_BYTES, new_folder
from pg2ref.checkpoint.safetensors_file import forget_pages
from pg2ref.checkpoint.safetensors_writer import Planned, write_shards
from pg2ref.checkpoint.tensor_table import LM_HEAD, canonical_name, is_ignored
from pg2ref.config import read_json_object
from pg2ref.errors import CheckpointError, UsageError

WEIGHTS_AT_ONCE = 1 << 24  # 64 MB of float32
TIED = "tie_word_embeddings"
OTHER_OF_PAIR = {  # the output matrix's name beside that of the embedding, and the other way round
    "language_model.model.embed_tokens.weight": "language_model.lm_head.weight",
    "model.language_model.embed_tokens.weight": "lm_head.weight",
    "language_model.lm_head.weight": "language_model.model.embed_tokens.weight",
    "lm_head.weight": "model.language_model.embed_tokens.weight",
}


class Merged(NamedTuple):
    """What was done."""

    adapted: int  # matrices that something was added to
    replaced: int  # tensors that were replaced whole
    total_bytes: int


def merge_checkpoint(
    source: Checkpoint, adapters: Sequence[Adapter], out: Path, *, on_bytes: Callable[[int], None] = lambda count: None
) -> Merged:
    """Write `out`, whole or not at all. Memory: the adapters, and some rows of the tensor in work.

    `on_bytes` hears how much is written.

    Raises:
        UsageError: a quantised source, or an `out` that holds something.
        CheckpointError: two adapters do not fit each other, or a sum is not finite.
        Pg2RefError: the disk is full, or the folder cannot be written.
    """
    if source.manifest is not None:
        raise UsageError(
            f"{source.folder}: quantised to {source.manifest.to}, expected the checkpoint it was made from: merge "
            "first, then `pg2ref quantize`"
        )
    base = base_weights(source)
    weights = adapt(base, adapters)
    names = {name: canonical_name(name) for name in source.tensors}
    written = {name: canonical for name, canonical in names.items() if not is_ignored(canonical)}
    is_parted = weights.get(LM_HEAD, weights[EMBEDDING]) is not weights[EMBEDDING]
    if is_parted:
        written = with_pair(written)
    planned = {
        name: {name: Planned(_stored_type(canonical, base), weights[canonical].shape)}
        for name, canonical in written.items()
    }

    def parts(name: str) -> Iterator[tuple[str, Array]]:
        canonical = written[name]
        is_new = weights[canonical] is not base.get(canonical)
        yield from (
            (name, rows) for rows in _rows(name, weights[canonical], planned[name][name].dtype, is_new, on_bytes)
        )

    total_bytes = sum(one.nbytes for stored in planned.values() for one in stored.values())
    with new_folder(out, source.folder, total_bytes) as unfinished:
        write_missing_config(unfinished, source.config)
        if is_parted:
            _say_that_they_are_parted(unfinished / CONFIG_NAME)
        write_shards(unfinished, planned, parts, MAX_SHARD_BYTES)
    adapted = sum(isinstance(weight, AdaptedMatrix) for weight in weights.values())
    return Merged(adapted, sum(len(adapter.replaced) for adapter in adapters), total_bytes)


def with_pair(names: Mapping[str, str]) -> dict[str, str]:
    """The stored names with one for the output matrix beside the embedding, or for the embedding beside it."""
    pairs = {OTHER_OF_PAIR[name]: name for name in names if name in OTHER_OF_PAIR}
    missing = {other: canonical_name(other) for other in pairs if canonical_name(other) not in names.values()}
    return {**names, **missing}


def _stored_type(canonical: str, base: Mapping[str, Any]) -> np.dtype[Any]:
    dtype: np.dtype[Any] = base[canonical if canonical in base else EMBEDDING].dtype
    return dtype


def _rows(
    name: str, weight: LinearWeight, dtype: np.dtype[Any], is_new: bool, on_bytes: Callable[[int], None]
) -> Iterator[Array]:
    """A tensor's numbers in its stored type, some rows at a time: as they lie, or what the adapters make of them."""
    step = max(1, WEIGHTS_AT_ONCE * weight.shape[0] // max(1, weight.size))
    for start in range(0, weight.shape[0], step):
        if isinstance(weight, np.ndarray) and weight.dtype == dtype:
            rows = weight[start : start + step]
            forget_pages(weight)
        else:
            summed = adapted_rows(weight, np.dtype(np.float32), start, start + step)
            with np.errstate(over="ignore"):  # float16 may be too small for it: looked at below
                rows = f32_to_bf16(summed) if dtype == np.uint16 else summed.astype(dtype)
        if is_new and not is_finite(rows).all():
            raise CheckpointError(
                f"{name} would hold NaN or infinity: expected finite sums, got some that {dtype} cannot hold, or a "
                "damaged checkpoint (`pg2ref inspect --verify`)"
            )
        on_bytes(rows.nbytes)
        yield rows


def _say_that_they_are_parted(path: Path) -> None:
    fields = {**read_json_object(path), TIED: False}
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
