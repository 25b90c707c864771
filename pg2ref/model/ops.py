"""The operations of both towers in plain NumPy: the reference that every kernel is compared with.

The result has the input's dtype: float32 in gives the float32 reference, float64 in gives the truth that judges it.
Weights are widened from the file's type to the input's, a block of rows at a time.

Inside, everything but the products of `linear` is computed in float64 and rounded once, and `linear` adds its
products in short runs. Reading a prompt costs a quarter more for it, a single row almost twice; in return the float32
reference is nearer to the truth than plain float32 arithmetic is, and judges others rather than adding to their noise.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pg2ref.adapted import LinearWeight
from pg2ref.arrays import Array, f32_to_bf16, widen
from pg2ref.model.masks import KeyRanges
from pg2ref.quantized import GROUP, HIGHEST, QuantizedMatrix, Weight, widen_rows

BLOCK_WEIGHTS = 1 << 20  # widened at a time: 4 MB of float32 stay in the cache between widening and product
SMALLEST_INPUT = 2.0**-100  # of a group that is rounded to int8: 127 over a smaller one might overflow
RUN = 128  # products summed by one matrix product; a sum's rounding error grows with the root of its length


class Affine(NamedTuple):
    """A weight and its bias: of a linear layer (O, D) and (O,), of a LayerNorm (E,) and (E,), which is an array."""

    weight: LinearWeight
    bias: Array


def linear(x_TD: Array, weight_OD: Weight, bias_O: Array | None = None) -> Array:
    """Multiply rows by a stored weight matrix, `x @ weight.T + bias`.

    `weight_OD` lies as in the file: bf16 bits, float16, float32 or float64, one row an output, or quantised. Of a
    quantised matrix this is what it means: codes times scales, with the rows of x as they are.

    Raises ValueError where the rows are not as long as the matrix's.
    """
    if x_TD.shape[1] != weight_OD.shape[1]:
        raise ValueError(f"expected rows (T, {weight_OD.shape[1]}) for weights {weight_OD.shape}, got {x_TD.shape}")
    out_TO = np.empty((x_TD.shape[0], weight_OD.shape[0]), x_TD.dtype)
    step = max(1, BLOCK_WEIGHTS // weight_OD.shape[1])
    for start in range(0, weight_OD.shape[0], step):
        block_OD = widen_rows(weight_OD, x_TD.dtype, start, start + step)
        out_TO[:, start : start + step] = sum(
            x_TD[:, d : d + RUN] @ block_OD[:, d : d + RUN].T for d in range(0, x_TD.shape[1], RUN)
        )
    if bias_O is not None:
        out_TO += widen(bias_O, x_TD.dtype)
    return out_TO


def add_thin(
    out_TO: Array, x_TD: Array, down_RD: Array, up_RO: Array, gain_O: Array | None, bias_O: Array | None
) -> Array:
    """What adapters make of a product with the stored matrix: `gain * out + (x @ down.T) @ up + bias`, in place."""
    if gain_O is not None:
        out_TO *= gain_O.astype(out_TO.dtype)
    out_TO += linear(linear(x_TD, down_RD), up_RO.T, bias_O)
    return out_TO


def linear_bf16(x_TD: Array, weight_OD: Weight, bias_O: Array | None = None) -> Array:
    """The same with the rows rounded to bf16 first, and the weights too where they are stored with more."""
    if not isinstance(weight_OD, QuantizedMatrix) and weight_OD.dtype in (np.float16, np.float32, np.float64):
        weight_OD = f32_to_bf16(weight_OD)
    return linear(as_bf16(x_TD, x_TD.dtype), weight_OD, bias_O)


def linear_integer(x_TD: Array, weight_OD: Weight, bias_O: Array | None = None) -> Array:
    """What integer products compute: rows rounded to int8 for a quantised matrix, to bf16 for a plain one."""
    if not isinstance(weight_OD, QuantizedMatrix):
        return linear_bf16(x_TD, weight_OD, bias_O)
    return linear(round_to_int8(x_TD), weight_OD, bias_O)


def round_to_int8(x_TD: Array) -> Array:
    """Each 32 inputs of a row as multiples of 1/127 of the largest of them, whole numbers from -127 to 127.

    Where the largest is below SMALLEST_INPUT, all are 0.
    """
    T, D = x_TD.shape
    groups_TGD = np.zeros((T, -(-D // GROUP), GROUP), x_TD.dtype)
    groups_TGD.reshape(T, -1)[:, :D] = x_TD
    largest_TG1 = np.abs(groups_TGD).max(axis=-1, keepdims=True)
    inverse_TG1 = HIGHEST[8] / np.where(largest_TG1 < SMALLEST_INPUT, np.inf, largest_TG1).astype(x_TD.dtype)
    rounded_TGD = np.rint(groups_TGD * inverse_TG1) * (largest_TG1 / HIGHEST[8])
    return rounded_TGD.reshape(T, -1)[:, :D]


def rms_norm(x_TD: Array, scale_D: Array, eps: float) -> Array:
    """Divide each row by its root mean square and multiply by (1 + scale), as Gemma stores it.

    `eps` stands inside the root (Gemma 2 report, arXiv:2408.00118; Transformers modeling_gemma2.py, Gemma2RMSNorm).
    """
    exact_TD = x_TD.astype(np.float64)
    mean_square_T1 = np.mean(np.square(exact_TD), axis=-1, keepdims=True)
    normed_TD = exact_TD / np.sqrt(mean_square_T1 + eps) * (1 + widen(scale_D, exact_TD.dtype))
    return normed_TD.astype(x_TD.dtype)


def layer_norm(x_TE: Array, scale_E: Array, bias_E: Array, eps: float) -> Array:
    """Normalise each row to mean 0 and (biased) variance 1, then scale and shift (arXiv:1607.06450)."""
    exact_TE = x_TE.astype(np.float64)
    centred_TE = exact_TE - exact_TE.mean(axis=-1, keepdims=True)
    variance_T1 = np.mean(np.square(centred_TE), axis=-1, keepdims=True)
    normed_TE = centred_TE / np.sqrt(variance_T1 + eps) * widen(scale_E, exact_TE.dtype)
    return (normed_TE + widen(bias_E, exact_TE.dtype)).astype(x_TE.dtype)


def gelu(x: Array) -> Array:
    """The tanh form of GELU, `gelu_pytorch_tanh` in config.json (arXiv:1606.08415, section 2). Any shape."""
    return exact_gelu(x).astype(x.dtype)


def gated_gelu(gate_TF: Array, up_TF: Array) -> Array:
    """gelu(gate) * up."""
    return (exact_gelu(gate_TF) * up_TF).astype(gate_TF.dtype)


def exact_gelu(x: Array) -> Array:
    """GELU in float64."""
    exact = x.astype(np.float64)
    return 0.5 * exact * (1 + np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact * exact * exact)))


def add(stream_TD: Array, branch_TD: Array) -> Array:
    """The residual stream with a branch added to it; position embeddings too."""
    return stream_TD + branch_TD


def scale(x_TD: Array, factor: float) -> Array:
    """All numbers times one."""
    return x_TD * factor


def soft_cap(logits: Array, cap: float | None) -> Array:
    """Squash logits smoothly into (-cap, cap). Any shape; None means no cap.

    Gemma 2 uses 50 before the attention softmax and 30 on the final logits (arXiv:2408.00118, section 2).
    """
    return logits if cap is None else (cap * np.tanh(logits.astype(np.float64) / cap)).astype(logits.dtype)


def softmax(logits_TS: Array) -> Array:
    """Softmax along the last axis; -inf gives exactly 0. Every row needs one finite entry."""
    weights_TS = np.exp(logits_TS - logits_TS.max(axis=-1, keepdims=True))
    return weights_TS / weights_TS.sum(axis=-1, keepdims=True)


def attention_weights(
    query_TNH: Array,
    key_SKH: Array,
    first_key_T: Array,
    last_key_T: Array,
    *,
    scale: float,
    logit_cap: float | None,
) -> Array:
    """How much each query reads of each key, `weights_NTS`: scale, cap, mask, softmax, in this order.

    Row t reads keys first_key_T[t] to last_key_T[t], both included. Query heads n * G to n * G + G - 1 share key
    head n (grouped-query attention, arXiv:2305.13245).
    """
    T, N, _ = query_TNH.shape
    S, K, _ = key_SKH.shape
    weights_KGTS = np.empty((K, N // K, T, S), query_TNH.dtype)  # large: nothing is held twice
    ranges = KeyRanges(first_key_T, last_key_T)
    for k, weights_GTS in enumerate(group_weights(query_TNH, key_SKH, ranges, scale, logit_cap)):
        weights_KGTS[k] = weights_GTS
    return weights_KGTS.reshape(N, T, S)


def attend(
    query_TNH: Array,
    key_SKH: Array,
    value_SKH: Array,
    first_key_T: Array,
    last_key_T: Array,
    *,
    scale: float,
    logit_cap: float | None,
) -> Array:
    """Attention: the values that each query reads, weighted by `attention_weights`; one key head at a time."""
    ranges = KeyRanges(first_key_T, last_key_T)
    return weigh_values(query_TNH, key_SKH, value_SKH, ranges, scale, logit_cap)


def attend_bf16(
    query_TNH: Array,
    key_SKH: Array,
    value_SKH: Array,
    first_key_T: Array,
    last_key_T: Array,
    *,
    scale: float,
    logit_cap: float | None,
) -> Array:
    """The same with queries, keys, values and weights rounded to bf16; keys and values may be stored so."""
    query_TNH, key_SKH, value_SKH = (as_bf16(array, query_TNH.dtype) for array in (query_TNH, key_SKH, value_SKH))
    ranges = KeyRanges(first_key_T, last_key_T)
    return weigh_values(query_TNH, key_SKH, value_SKH, ranges, scale, logit_cap, round_weights=as_bf16)


def as_bf16(values: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers rounded to bf16, as `dtype`; bf16 bits only widened."""
    return widen(values if values.dtype == np.uint16 else f32_to_bf16(values), dtype)


def weigh_values(
    query_TNH: Array,
    key_SKH: Array,
    value_SKH: Array,
    ranges: KeyRanges,
    scale: float,
    logit_cap: float | None,
    *,
    round_weights: Callable[[Array, np.dtype[Any]], Array] = widen,
) -> Array:
    """The values of each key head times the weights of the queries that share it."""
    G = query_TNH.shape[1] // key_SKH.shape[1]
    out_TNH = np.empty_like(query_TNH)
    for k, weights_GTS in enumerate(group_weights(query_TNH, key_SKH, ranges, scale, logit_cap)):
        values_SH = widen(value_SKH[:, k], weights_GTS.dtype)
        weights_GTS = round_weights(weights_GTS, weights_GTS.dtype)
        out_TNH[:, k * G : (k + 1) * G] = (weights_GTS @ values_SH).transpose(1, 0, 2)
    return out_TNH


def group_weights(
    query_TNH: Array, key_SKH: Array, ranges: KeyRanges, scale: float, logit_cap: float | None
) -> Iterator[Array]:
    """For each key head, the weights of the queries that share it, `weights_GTS` in float64.

    Scores reach tens and weights are exponentials of their differences, so a rounded score costs more than any other
    rounding in the model.
    """
    S, K, _ = key_SKH.shape
    G = query_TNH.shape[1] // K
    allowed_TS = ranges.allowed_TS(S)
    for k in range(K):
        query_GTH = query_TNH[:, k * G : (k + 1) * G].transpose(1, 0, 2).astype(np.float64)
        logits_GTS = query_GTH @ widen(key_SKH[:, k], query_GTH.dtype).T
        yield softmax(np.where(allowed_TS, soft_cap(logits_GTS * scale, logit_cap), -np.inf))
