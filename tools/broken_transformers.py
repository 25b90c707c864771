"""Transformers' PaliGemma 2 with one mistake each, patched at run time: what the diagnosis has to recognise.

The mistakes are those of the bug museum (pg2ref/parity/bugs/), written a second time in torch and without pg2ref, so
that naming them shows more than that pg2ref agrees with itself. Needs the `parity` extra.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import transformers_stages
from PIL import Image
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.paligemma import modeling_paligemma


class Given(NamedTuple):
    """What the model is run on: one image, its picture before resizing, and ids of prompt and answer."""

    pixel_values: np.ndarray
    picture: Image.Image
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


Break = Callable[[Any, Given, ExitStack], Given | None]
BREAKS: dict[str, Break] = {}


def breaks(name: str) -> Callable[[Break], Break]:
    """Register a mistake under its name in the museum."""

    def register(function: Break) -> Break:
        BREAKS[name] = function
        return function

    return register


def record(model: Any, given: Given, name: str | None) -> transformers_stages.Stages:
    """Every stage of one pass with a mistake, or without; `model` is changed, so load it anew for each."""
    with ExitStack() as stack:
        if name is not None:
            given = BREAKS[name](model, given, stack) or given
        ids = [*given.prompt_ids, *given.answer_ids]
        stages = transformers_stages.record(model, given.pixel_values[None], ids, len(given.prompt_ids))
    return {"input/ids": np.array(given.prompt_ids), **stages}


def replace(stack: ExitStack, module: Any, name: str, function: Callable[..., Any]) -> None:
    """Another function under a module's name, until the stack is closed."""
    stack.enter_context(mock.patch.object(module, name, function))


@breaks("bgr")
def _(model: Any, given: Given, stack: ExitStack) -> Given:
    return given._replace(pixel_values=given.pixel_values[[2, 1, 0]].copy())


@breaks("no-antialias")
def _(model: Any, given: Given, stack: ExitStack) -> Given:
    levels = torch.from_numpy(np.array(given.picture)).permute(2, 0, 1)[None].float()
    side = given.pixel_values.shape[-1]
    small = torch.nn.functional.interpolate(levels, (side, side), mode="bilinear", antialias=False)
    return given._replace(pixel_values=(small[0] / 127.5 - 1).numpy())


@breaks("missing-bos")
def _(model: Any, given: Given, stack: ExitStack) -> Given:
    return given._replace(prompt_ids=tuple(i for i in given.prompt_ids if i != 2))


@breaks("bos-first")
def _(model: Any, given: Given, stack: ExitStack) -> Given:
    return given._replace(prompt_ids=(2, *(i for i in given.prompt_ids if i != 2)))


@breaks("missing-newline")
def _(model: Any, given: Given, stack: ExitStack) -> Given:
    return given._replace(prompt_ids=given.prompt_ids[:-1])


@breaks("gelu-erf")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    for layer in model.model.vision_tower.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()
    for layer in model.model.language_model.layers:
        layer.mlp.act_fn = torch.nn.GELU()


@breaks("missing-post-layernorm")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    model.model.vision_tower.post_layernorm = torch.nn.Identity()


def scale_images(model: Any, power: float) -> None:
    """Image embeddings times a power of the width, behind the projector: where ports do it."""
    factor, project = model.config.text_config.hidden_size**power, model.model.get_image_features

    def scaled(*args: Any, **kwargs: Any) -> Any:
        outputs = project(*args, **kwargs)
        outputs.pooler_output = outputs.pooler_output * factor
        return outputs

    model.model.get_image_features = scaled


@breaks("image-times-sqrt")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    scale_images(model, 0.5)


@breaks("image-over-sqrt")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    scale_images(model, -0.5)


@breaks("text-unscaled")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    model.model.language_model.embed_tokens.embed_scale.fill_(1.0)


@breaks("text-scaled-twice")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    model.model.language_model.embed_tokens.embed_scale.square_()


@breaks("gqa-tiled")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    replace(stack, modeling_gemma2, "repeat_kv", lambda states, n_rep: states.repeat(1, n_rep, 1, 1))


@breaks("query-scale")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    for layer in model.model.language_model.layers:
        layer.self_attn.scaling = layer.self_attn.head_dim**-0.5


@breaks("missing-attention-cap")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    for layer in model.model.language_model.layers:
        layer.self_attn.attn_logit_softcapping = None


@breaks("cap-after-mask")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    def attention(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        scaling: float,
        softcap: float,
        **kwargs: Any,
    ) -> Any:
        key = modeling_gemma2.repeat_kv(key, module.num_key_value_groups)
        value = modeling_gemma2.repeat_kv(value, module.num_key_value_groups)
        scores = query @ key.transpose(2, 3) * scaling + attention_mask
        weights = torch.softmax(softcap * torch.tanh(scores / softcap), dim=-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    replace(stack, modeling_gemma2, "eager_attention_forward", attention)


def change_masks(stack: ExitStack, change: Callable[[torch.Tensor, dict[str, Any], bool], torch.Tensor]) -> None:
    """Pass every mask through `change(mask, arguments, is_sliding)`; a mask is 0 or the lowest number."""
    for name in ("create_causal_mask", "create_sliding_window_causal_mask"):
        create = getattr(modeling_paligemma, name)

        def changed(create: Any = create, name: str = name, **arguments: Any) -> torch.Tensor:
            return change(create(**arguments), arguments, "sliding" in name)

        replace(stack, modeling_paligemma, name, changed)


@breaks("causal-prefix")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    for name in ("create_causal_mask", "create_sliding_window_causal_mask"):
        create = getattr(modeling_paligemma, name)

        def causal(create: Any = create, **arguments: Any) -> Any:
            return create(**{key: value for key, value in arguments.items() if key != "block_sequence_ids"})

        replace(stack, modeling_paligemma, name, causal)


@breaks("answer-sees-ahead")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    """Upwards everything is open; what a window hides behind stays hidden."""
    change_masks(stack, lambda mask, arguments, is_sliding: torch.tril(mask))


def set_window(model: Any, window: int) -> None:
    """Of the masks, which read it from the config."""
    model.config.text_config.sliding_window = window


@breaks("window-too-large")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    set_window(model, model.config.text_config.sliding_window + 1)


@breaks("window-too-small")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    set_window(model, model.config.text_config.sliding_window - 1)


@breaks("window-in-prefix")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    window = model.config.text_config.sliding_window

    def cut(mask: torch.Tensor, arguments: Any, is_sliding: bool) -> torch.Tensor:
        rows = torch.arange(mask.shape[-1])
        outside = rows[None, :] <= rows[:, None] - window
        return mask.masked_fill(outside & torch.tensor(is_sliding), torch.finfo(mask.dtype).min)

    change_masks(stack, cut)


@breaks("no-window")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    set_window(model, 1 << 20)


@breaks("layers-swapped")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    kinds = model.config.text_config.layer_types
    model.config.text_config.layer_types = [*kinds[1:], kinds[0]]


@breaks("rmsnorm-weight")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return (self._norm(x.float()) * self.weight.float()).type_as(x)

    replace(stack, modeling_gemma2.Gemma2RMSNorm, "forward", forward)


@breaks("missing-post-norms")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    for layer in model.model.language_model.layers:
        layer.post_attention_layernorm, layer.post_feedforward_layernorm = torch.nn.Identity(), torch.nn.Identity()


@breaks("rope-interleaved")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    def rotate(query: Any, key: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        cos, sin = (
            table[..., : table.shape[-1] // 2].repeat_interleave(2, -1).unsqueeze(unsqueeze_dim) for table in (cos, sin)
        )
        return tuple(
            x * cos + torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2) * sin for x in (query, key)
        )

    replace(stack, modeling_gemma2, "apply_rotary_pos_emb", rotate)


@breaks("positions-from-zero")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    table = model.model.language_model.rotary_emb.forward
    model.model.language_model.rotary_emb.forward = lambda x, position_ids: table(x, position_ids - 1)


@breaks("head-transposed")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    weight = model.lm_head.weight.detach()
    model.lm_head.weight = torch.nn.Parameter(weight.T.reshape(weight.shape).clone())


@breaks("missing-final-cap")
def _(model: Any, given: Given, stack: ExitStack) -> None:
    model.config.text_config.final_logit_softcapping = None
