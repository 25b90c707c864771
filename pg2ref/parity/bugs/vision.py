"""Mistakes between the pixels and the first decoder layer, and the activation that both towers share."""

from math import erf

import numpy as np

from pg2ref.arrays import Array, widen
from pg2ref.model.ops import Affine
from pg2ref.parity.bugs.run import Bug, Run, with_operations
from pg2ref.quantized import Weight, widen_rows

_erf = np.frompyfunc(erf, 1, 1)


def gelu_by_erf(x: Array) -> Array:
    """GELU by the error function, which the tanh form approximates (arXiv:1606.08415, section 2)."""
    exact = x.astype(np.float64)
    return (0.5 * exact * (1 + _erf(exact / np.sqrt(2)).astype(np.float64))).astype(x.dtype)


def _gelu_by_erf(run: Run) -> Run:
    ops = run.model.ops

    def gated_linear(x_TD: Array, gate_FD: Weight, up_FD: Weight) -> Array:
        gate_TF, up_TF = ops.linear_each(x_TD, [gate_FD, up_FD])
        return gelu_by_erf(gate_TF) * up_TF

    return with_operations(run, gelu=gelu_by_erf, gated_linear=gated_linear)


def _without_post_layernorm(run: Run) -> Run:
    ops, last = run.model.ops, run.model.params.vision_tower.post_layernorm.weight

    def layer_norm(x_TE: Array, scale_E: Array, bias_E: Array, eps: float) -> Array:
        return x_TE if scale_E is last else ops.layer_norm(x_TE, scale_E, bias_E, eps)

    return with_operations(run, layer_norm=layer_norm)


def _scale_images(run: Run, factor: float) -> Run:
    model = run.model
    weight, bias = model.params.multi_modal_projector
    exact = np.dtype(np.float64)  # rounded once, when it is scaled
    scaled = Affine(
        (widen_rows(weight, exact, 0, weight.shape[0]) * factor).astype(model.dtype),
        (widen(bias, exact) * factor).astype(model.dtype),
    )
    return run._replace(model=model._replace(params=model.params._replace(multi_modal_projector=scaled)))


def _scale_text_twice(run: Run) -> Run:
    scale = run.model.ops.scale
    return with_operations(run, scale=lambda x, factor: scale(scale(x, factor), factor))


def _sqrt_width(run: Run) -> float:
    return float(run.model.config.text.hidden_size**0.5)


BUGS = (
    Bug(
        "gelu-erf",
        "GELU is computed by the error function, not by the tanh form the model was trained with.",
        ("vision", "decoder"),
        ("NVIDIA-NeMo/Megatron-Bridge#4661",),
        _gelu_by_erf,
    ),
    Bug(
        "missing-post-layernorm",
        "The projector reads the vision tower before its final LayerNorm, as LLaVA does.",
        ("vision",),
        ("huggingface/text-generation-inference#2459", "vllm-project/vllm#8155"),
        _without_post_layernorm,
    ),
    Bug(
        "image-times-sqrt",
        "Image embeddings are multiplied by the square root of the text width, as text embeddings are.",
        ("merge",),
        ("huggingface/lerobot#3603",),
        lambda run: _scale_images(run, _sqrt_width(run)),
    ),
    Bug(
        "image-over-sqrt",
        "Image embeddings are divided by the square root of the text width.",
        ("merge",),
        ("vllm-project/vllm#52667", "hellas-ai/catgrad#402"),
        lambda run: _scale_images(run, 1 / _sqrt_width(run)),
    ),
    Bug(
        "text-unscaled",
        "Text embeddings are not multiplied by the square root of the text width.",
        ("merge",),
        ("hellas-ai/catgrad#402",),
        lambda run: with_operations(run, scale=lambda x, factor: x),
    ),
    Bug(
        "text-scaled-twice",
        "Text embeddings are multiplied by the square root of the text width twice.",
        ("merge",),
        ("huggingface/lerobot#3603",),
        _scale_text_twice,
    ),
)
