"""Mistakes in the decoder outside attention: norms, rotation, and what becomes of the last hidden state."""

from typing import Any

import numpy as np

from pg2ref.arrays import Array, widen
from pg2ref.errors import UsageError
from pg2ref.model import rope
from pg2ref.parity.bugs.run import Bug, Run, with_language_model, with_operations, with_text_fields
from pg2ref.quantized import QuantizedMatrix


def _scale_is_the_weight(run: Run) -> Run:
    ops = run.model.ops

    def rms_norm(x_TD: Array, scale_D: Array, eps: float) -> Array:
        return ops.rms_norm(x_TD, widen(scale_D, x_TD.dtype) - 1, eps)

    return with_operations(run, rms_norm=rms_norm)


def _without_post_norms(run: Run) -> Run:
    ops = run.model.ops
    left_out = {
        id(scale)
        for layer in run.model.params.language_model.layers
        for scale in (layer.post_attention_layernorm, layer.post_feedforward_layernorm)
    }

    def rms_norm(x_TD: Array, scale_D: Array, eps: float) -> Array:
        return x_TD if id(scale_D) in left_out else ops.rms_norm(x_TD, scale_D, eps)

    return with_operations(run, rms_norm=rms_norm)


def _rotate_neighbours(x_TNH: Array, cos_TR: Array, sin_TR: Array) -> Array:
    exact_TNH = x_TNH.astype(np.float64)
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
    even_TNR, odd_TNR = exact_TNH[..., 0::2], exact_TNH[..., 1::2]
    rotated = [even_TNR * cos_T1R - odd_TNR * sin_T1R, odd_TNR * cos_T1R + even_TNR * sin_T1R]
    return np.stack(rotated, axis=-1).reshape(x_TNH.shape).astype(x_TNH.dtype)


def _positions_from_zero(run: Run) -> Run:
    table = run.model.ops.rotation_table

    def rotation_table(positions_T: Array, *rest: Any) -> tuple[Array, Array]:
        return table(positions_T - rope.FIRST_POSITION, *rest)

    return with_operations(run, rotation_table=rotation_table)


def _transpose_head(run: Run) -> Run:
    head_VD = run.model.params.language_model.lm_head
    if isinstance(head_VD, QuantizedMatrix):
        raise UsageError("a quantised head cannot be read transposed: take the checkpoint it was made from")
    return with_language_model(run, lm_head=np.ascontiguousarray(head_VD.T).reshape(head_VD.shape))


BUGS = (
    Bug(
        "rmsnorm-weight",
        "RMSNorm multiplies by w; Gemma stores w for 1 + w.",
        ("decoder", "logits"),
        ("linkedin/Liger-Kernel#74", "pytorch/executorch#19901"),
        _scale_is_the_weight,
    ),
    Bug(
        "missing-post-norms",
        "A Gemma 1 block: the norms behind attention and behind the MLP are left out.",
        ("decoder",),
        ("hkproj/pytorch-paligemma#6",),
        _without_post_norms,
    ),
    Bug(
        "rope-interleaved",
        "RoPE turns neighbouring numbers of a head; Gemma pairs the first half with the second.",
        ("decoder",),
        ("EleutherAI/gpt-neox#834", "vllm-project/vllm-ascend#12765"),
        lambda run: with_operations(run, rotate=_rotate_neighbours),
    ),
    Bug(
        "positions-from-zero",
        "Positions are counted from 0, not 1: logits stay, rotated queries and keys do not.",
        ("decoder",),
        ("huggingface/transformers#36856", "Physical-Intelligence/openpi#762"),
        _positions_from_zero,
    ),
    Bug(
        "head-transposed",
        "The output matrix is read as (width, vocabulary) though it lies as (vocabulary, width).",
        ("logits",),
        ("Integral2u/SharpMind#14",),
        _transpose_head,
    ),
    Bug(
        "missing-final-cap",
        "The final logits are not soft-capped: the best token is the same, its probability is not.",
        ("logits",),
        ("vllm-project/vllm#52173", "keras-team/keras-hub#1712"),
        lambda run: with_text_fields(run, final_logit_softcapping=None),
    ),
)
