"""The operations as Transformers rounds them on a CPU, in float32 and in bf16: what a port's noise is measured by.

Another implementation of the table, plain: what Transformers 5.23 (models/gemma2, models/siglip) stores in the type of
the run is rounded to that type here, and nothing else is. In float32 that means float32 throughout, the angles of the
rotation included; in bf16, sums and the insides of norms, GELU and softmax are float32, and what leaves them is bf16.
Numbers are held in float32 either way. Short sums come out as Transformers' bit for bit; long ones differ by their
order, so a whole run's noise is of the same size and drawn anew.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from pg2ref.adapted import LinearWeight, adapted_rows
from pg2ref.arrays import Array, bf16_to_f32, f32_to_bf16, widen
from pg2ref.model.backend import Ops
from pg2ref.model.masks import KeyRanges
from pg2ref.model.ops import BLOCK_WEIGHTS

F32 = np.dtype(np.float32)
ROUNDED_PRECISIONS = ("f32", "bf16")


class Tables(NamedTuple):
    """Transformers attends to images with its fused kernel (sdpa), to text step by step (eager)."""

    vision: Ops
    text: Ops


@cache
def transformers_tables(precision: str) -> Tables:
    """The tables of a run in `precision`, one of ROUNDED_PRECISIONS."""
    rounding = Rounding({"f32": as_f32, "bf16": as_bf16}[precision])
    methods = {name: getattr(rounding, name) for name in Ops._fields}
    return Tables(Ops(**methods | {"attend": rounding.attend_fused}), Ops(**methods))


def as_f32(values: Array) -> Array:
    """Float32, as it is."""
    return values.astype(F32, copy=False)


def as_bf16(values: Array) -> Array:
    """The nearest bf16 numbers, in float32."""
    return bf16_to_f32(f32_to_bf16(values))


class Rounding:
    """All operations; `rounded` gives the nearest numbers of a type."""

    def __init__(self, rounded: Callable[[Array], Array]) -> None:
        self.rounded = rounded

    def linear(self, x_TD: Array, weight_OD: LinearWeight, bias_O: Array | None = None) -> Array:
        """Sums and the bias in float32, one rounding; of an adapted matrix, that of the merged checkpoint."""
        x_TD = self.rounded(x_TD)
        out_TO = np.empty((x_TD.shape[0], weight_OD.shape[0]), F32)
        step = max(1, BLOCK_WEIGHTS // weight_OD.shape[1])
        for start in range(0, weight_OD.shape[0], step):
            out_TO[:, start : start + step] = x_TD @ self.rounded(adapted_rows(weight_OD, F32, start, start + step)).T
        return self.rounded(out_TO if bias_O is None else out_TO + widen(bias_O, F32))

    def linear_each(
        self, x_TD: Array, weights: Sequence[LinearWeight], biases: Sequence[Array | None] | None = None
    ) -> list[Array]:
        """Several linear layers of the same rows."""
        return [self.linear(x_TD, *layer) for layer in zip(weights, biases or [None] * len(weights), strict=True)]

    def gated_linear(self, x_TD: Array, gate_FD: LinearWeight, up_FD: LinearWeight) -> Array:
        """GeGLU; GELU is rounded before the product."""
        return self.rounded(self.gelu(self.linear(x_TD, gate_FD)) * self.linear(x_TD, up_FD))

    def rms_norm(self, x_TD: Array, scale_D: Array, eps: float) -> Array:
        """Float32 inside, the factor (1 + scale) included."""
        mean_square_T1 = np.mean(np.square(x_TD), axis=-1, keepdims=True)
        inverse_T1 = 1 / np.sqrt(mean_square_T1 + np.float32(eps))
        return self.rounded(x_TD * inverse_T1 * (1 + widen(scale_D, F32)))

    def layer_norm(self, x_TE: Array, scale_E: Array, bias_E: Array, eps: float) -> Array:
        """Float32 inside, scale and bias included."""
        centred_TE = x_TE - x_TE.mean(axis=-1, keepdims=True)
        inverse_T1 = 1 / np.sqrt(np.mean(np.square(centred_TE), axis=-1, keepdims=True) + np.float32(eps))
        return self.rounded(centred_TE * inverse_T1 * widen(scale_E, F32) + widen(bias_E, F32))

    def gelu(self, x: Array) -> Array:
        """Float32 inside."""
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        return self.rounded(np.float32(0.5) * x * (1 + np.tanh(inner)))

    def soft_cap(self, logits: Array, cap: float | None) -> Array:
        """Three operations, each rounded."""
        if cap is None:
            return logits
        return self.rounded(self.rounded(np.tanh(self.rounded(logits / np.float32(cap)))) * np.float32(cap))

    def rotation_table(
        self, positions_T: Array, head_dim: int, theta: float, dtype: np.dtype[Any]
    ) -> tuple[Array, Array]:
        """Angles in float32, which is off by up to position * 6e-8; cosines and sines rounded. `dtype` is float32."""
        frequency_R = 1 / np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=dtype) / np.float32(head_dim))
        angle_TR = positions_T.astype(dtype)[:, None] * frequency_R
        return self.rounded(np.cos(angle_TR)), self.rounded(np.sin(angle_TR))

    def rotate(self, x_TNH: Array, cos_TR: Array, sin_TR: Array) -> Array:
        """Both products rounded, and their sum."""
        first_TNR, second_TNR = np.split(x_TNH, 2, axis=-1)
        turned_TNH = np.concatenate([-second_TNR, first_TNR], axis=-1)
        cos_T1H, sin_T1H = (np.concatenate([table_TR, table_TR], axis=-1)[:, None] for table_TR in (cos_TR, sin_TR))
        return self.rounded(self.rounded(x_TNH * cos_T1H) + self.rounded(turned_TNH * sin_T1H))

    def attention_weights(
        self,
        query_TNH: Array,
        key_SKH: Array,
        first_key_T: Array,
        last_key_T: Array,
        *,
        scale: float,
        logit_cap: float | None,
    ) -> Array:
        """Products, scaled products, the three steps of the cap, and the softmax, each rounded."""
        rows_KGTS = self._logits(query_TNH, key_SKH)
        allowed_TS = KeyRanges(first_key_T, last_key_T).allowed_TS(key_SKH.shape[0])
        for logits_GTS in rows_KGTS:
            capped_GTS = self.soft_cap(self.rounded(self.rounded(logits_GTS) * np.float32(scale)), logit_cap)
            powers_GTS, sums_GT1 = _powers(capped_GTS, allowed_TS)
            logits_GTS[...] = self.rounded(powers_GTS / sums_GT1)
        return rows_KGTS.reshape(query_TNH.shape[1], *rows_KGTS.shape[2:])

    def attend(
        self,
        query_TNH: Array,
        key_SKH: Array,
        value_SKH: Array,
        first_key_T: Array,
        last_key_T: Array,
        *,
        scale: float,
        logit_cap: float | None,
    ) -> Array:
        """Eager: the rounded weights times the values, rounded."""
        options: dict[str, Any] = {"scale": scale, "logit_cap": logit_cap}
        weights_NTS = self.attention_weights(query_TNH, key_SKH, first_key_T, last_key_T, **options)
        return self.rounded(_weigh(weights_NTS, value_SKH))

    def attend_fused(
        self,
        query_TNH: Array,
        key_SKH: Array,
        value_SKH: Array,
        first_key_T: Array,
        last_key_T: Array,
        *,
        scale: float,
        logit_cap: float | None,
    ) -> Array:
        """Sdpa on a CPU: scores in float32; exponentials rounded before they weigh, but not before they are summed."""
        rows_KGTS = self._logits(query_TNH, key_SKH)
        allowed_TS = KeyRanges(first_key_T, last_key_T).allowed_TS(key_SKH.shape[0])
        sums_KGT1 = np.empty((*rows_KGTS.shape[:3], 1), F32)
        for logits_GTS, sums_GT1 in zip(rows_KGTS, sums_KGT1, strict=True):
            powers_GTS, sums_GT1[...] = _powers(self.soft_cap(logits_GTS * np.float32(scale), logit_cap), allowed_TS)
            logits_GTS[...] = self.rounded(powers_GTS)
        heads = query_TNH.shape[1]
        weighed_TNH = _weigh(rows_KGTS.reshape(heads, *rows_KGTS.shape[2:]), value_SKH)
        return self.rounded(weighed_TNH / sums_KGT1.reshape(heads, -1, 1).transpose(1, 0, 2))

    def add(self, stream_TD: Array, branch_TD: Array) -> Array:
        """One rounding."""
        return self.rounded(stream_TD + branch_TD)

    def scale(self, x_TD: Array, factor: float) -> Array:
        """The factor rounded, then the product: of 59.87, 10B's, bf16 makes 59.75."""
        return self.rounded(x_TD * self.rounded(np.array(factor, F32)))

    def to_bf16(self, values: Array) -> Array:
        """Bits of bf16."""
        return f32_to_bf16(values)

    def _logits(self, query_TNH: Array, key_SKH: Array) -> Array:
        """Products of queries and keys in float32, `logits_KGTS`; G query heads share a key head."""
        T, N, H = query_TNH.shape
        K = key_SKH.shape[1]
        query_KGTH = query_TNH.reshape(T, K, N // K, H).transpose(1, 2, 0, 3)
        key_K1HS = key_SKH.transpose(1, 2, 0)[:, None]
        return query_KGTH @ key_K1HS


def _powers(logits_GTS: Array, allowed_TS: Array) -> tuple[Array, Array]:
    """Exponentials, 0 where a key may not be read, and their sums."""
    masked_GTS = np.where(allowed_TS, logits_GTS, np.float32(-np.inf))
    powers_GTS = np.exp(masked_GTS - masked_GTS.max(axis=-1, keepdims=True))
    return powers_GTS, powers_GTS.sum(axis=-1, keepdims=True)


def _weigh(weights_NTS: Array, value_SKH: Array) -> Array:
    """Values times weights, `out_TNH`, in float32."""
    N, T, S = weights_NTS.shape
    K, H = value_SKH.shape[1:]
    weights_KGTS = weights_NTS.reshape(K, N // K, T, S)
    return (weights_KGTS @ value_SKH.transpose(1, 0, 2)[:, None]).reshape(N, T, H).transpose(1, 0, 2)
