"""Adapters onto a checkpoint: the weights stay where they lie, and get beside them what the adapters add.

Several adapters are applied in the order given, as peft does when several are active: what LoRA adds does not depend on
the others, DoRA scales rows with all that was added before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pg2ref.adapted import AdaptedMatrix, LinearWeight
from pg2ref.adapters.adapter import Adapter, LowRank
from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.checkpoint.loader import EMBEDDING, Checkpoint, match
from pg2ref.checkpoint.tensor_table import LM_HEAD, assemble, is_matrix
from pg2ref.errors import CheckpointError
from pg2ref.quantized import Weight, widen_rows

CHUNK = 1 << 22  # weights at a time, for the lengths of rows
FLOAT32 = np.dtype(np.float32)


def with_adapters(checkpoint: Checkpoint, adapters: Sequence[Adapter], *, in_bf16: bool = False) -> Checkpoint:
    """The checkpoint with adapters beside its weights.

    `in_bf16` says that matrices will be multiplied in bf16: what replaces one is then rounded once, not at each use.

    Memory: the thin matrices in float32, and what replaces a matrix where it is stored with other numbers than these.
    DoRA reads each matrix that it adapts once, now.

    Raises:
        CheckpointError: two adapters do not fit each other.
    """
    weights = adapt(base_weights(checkpoint), adapters)
    params = assemble(checkpoint.config, {name: _ready(name, weights[name], in_bf16) for name in weights})
    return checkpoint._replace(params=params)


def base_weights(checkpoint: Checkpoint) -> dict[str, Weight]:
    """The checkpoint's own weights by their canonical names."""
    return match(checkpoint.weights, checkpoint.config, checkpoint.manifest.to if checkpoint.manifest else None)


def _ready(name: str, weight: LinearWeight, in_bf16: bool) -> LinearWeight:
    """A weight as kernels read it without converting it at each use; rows of an embedding keep all their bits."""
    if not isinstance(weight, np.ndarray) or not is_matrix(name):
        return weight
    if weight.dtype == FLOAT32 and in_bf16 and name != EMBEDDING:
        return f32_to_bf16(weight)
    return weight.astype(FLOAT32) if weight.dtype == np.float16 else weight


def adapt(base: Mapping[str, Weight], adapters: Sequence[Adapter]) -> dict[str, LinearWeight]:
    """The weights with all that the adapters replace and add, by canonical names.

    An embedding of which a copy was trained (`modules_to_save`), or that is adapted, no longer is the output matrix
    too: that stays as it was, under a name of its own.

    Raises:
        CheckpointError: two adapters replace one tensor, or one adapts what another replaces.
    """
    _check_together(adapters)
    weights: dict[str, LinearWeight] = dict(base)
    for adapter in adapters:
        weights |= {name: tensor for name, tensor in adapter.replaced.items() if name not in adapter.saved}
    touched = {name for adapter in adapters for name in (*adapter.saved, *adapter.low_rank)}
    if LM_HEAD not in weights and touched & {EMBEDDING, LM_HEAD}:
        weights[LM_HEAD] = weights[EMBEDDING]
    for adapter in adapters:
        weights |= {name: adapter.replaced[name] for name in adapter.saved}
    for name in sorted({name for adapter in adapters for name in adapter.low_rank}):
        additions = [adapter.low_rank[name] for adapter in adapters if name in adapter.low_rank]
        matrix: Any = weights[name]  # of the checkpoint: adapted ones are made here, once each
        weights[name] = beside(matrix, additions)
    return weights


def _check_together(adapters: Sequence[Adapter]) -> None:
    for i, one in enumerate(adapters):
        for other in adapters[:i]:
            both = set(one.replaced) & (set(other.replaced) | set(other.low_rank))
            both |= set(one.low_rank) & set(other.replaced)
            if both:
                raise CheckpointError(
                    f"{other.folder} and {one.folder} both have {min(both)}, and at least one replaces it: give one of "
                    "them, or merge the first (`pg2ref merge`) and adapt the result"
                )


def beside(base: Weight, additions: Sequence[LowRank]) -> AdaptedMatrix:
    """The matrix with the additions of several adapters as one pair of thin matrices."""
    ups: list[Array] = []
    gain_O: Array | None = None
    for addition in additions:
        up_RO: Array = addition.up_RO * np.float32(addition.scale)
        if addition.magnitude_O is not None:
            own_gain_O = addition.magnitude_O / row_lengths(base, up_RO, addition.down_RD)
            ups = [earlier_RO * own_gain_O for earlier_RO in ups]
            up_RO = up_RO * own_gain_O
            gain_O = own_gain_O if gain_O is None else gain_O * own_gain_O
        ups.append(up_RO)
    down_RD = np.concatenate([addition.down_RD for addition in additions])
    return AdaptedMatrix(base, np.ascontiguousarray(down_RD), np.ascontiguousarray(np.concatenate(ups)), gain_O)


def row_lengths(base: Weight, up_RO: Array, down_RD: Array) -> Array:
    """The Euclidean length of each row of `base + up.T @ down`, in float32 (arXiv:2402.09353, equation 5)."""
    lengths_O = np.empty(base.shape[0], np.float32)
    step = max(1, CHUNK // base.shape[1])
    for start in range(0, base.shape[0], step):
        rows_OD = widen_rows(base, FLOAT32, start, start + step) + up_RO[:, start : start + step].T @ down_RD
        lengths_O[start : start + step] = np.sqrt(np.einsum("od,od->o", rows_OD, rows_OD))
    return lengths_O
