"""Runs Transformers' PaliGemma 2 and records every stage under this project's names, by hooks, without changing it.

The parity tests, the golden records and the parity table are all made with `record`. Needs the `parity` extra.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import PaliGemmaForConditionalGeneration
from transformers.models.gemma2 import modeling_gemma2

Stages = dict[str, np.ndarray]


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, vision_attention: str = "eager"
) -> PaliGemmaForConditionalGeneration:
    """The folder's model in eager attention, the only one that applies the soft caps and shows its weights.

    Transformers' default for the vision tower is `sdpa`, which rounds otherwise in bf16.
    """
    attention = {"text_config": "eager", "vision_config": vision_attention}
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    return model.eval()


def record(
    model: PaliGemmaForConditionalGeneration,
    pixel_values: np.ndarray,
    input_ids: Sequence[int],
    prefix_length: int,
    wanted: Callable[[str], bool] = lambda stage: True,
) -> Stages:
    """All stages of one forward pass, in float32."""
    stages: Stages = {}

    def keep(stage: str, value: torch.Tensor) -> None:
        if wanted(stage):
            stages[stage] = value.detach().float().numpy().copy()

    run(model, pixel_values, input_ids, prefix_length, keep)
    return stages


def run(
    model: PaliGemmaForConditionalGeneration,
    pixel_values: np.ndarray,
    input_ids: Sequence[int],
    prefix_length: int,
    keep: Callable[[str, torch.Tensor], None],
    logits_to_keep: int = 0,
) -> torch.Tensor:
    """One forward pass that shows each stage to `keep`; the logits of the last rows, or of all (0).

    `pixel_values` is (images, C, Y, X), the rows from `prefix_length` are suffix.
    """
    ids = torch.tensor([list(input_ids)])
    types = (torch.arange(ids.shape[1]) >= prefix_length).long()[None]
    with torch.no_grad(), hooks(model, keep):
        output = model(
            input_ids=ids,
            pixel_values=torch.from_numpy(pixel_values),
            token_type_ids=types,
            attention_mask=torch.ones_like(ids),
            use_cache=False,  # nothing is read later, and its cache fails where sliding_window is null
            logits_to_keep=logits_to_keep,
        )
    keep("logits", output.logits[0])
    return output.logits[0]


def generate(
    model: PaliGemmaForConditionalGeneration,
    pixel_values: np.ndarray,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    use_cache: bool = True,
) -> list[int]:
    """Greedy ids of the answer, its end included; with sliding_window null it has to be without a cache."""
    ids = torch.tensor([list(prompt_ids)])
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            pixel_values=torch.from_numpy(pixel_values),
            token_type_ids=torch.zeros_like(ids),
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=use_cache,
        )
    return output[0, ids.shape[1] :].tolist()


@contextmanager
def hooks(model: PaliGemmaForConditionalGeneration, keep: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """While open, every stage of a forward pass reaches `keep`; images share the batch axis of the vision tower."""
    with ExitStack() as stack:
        tower, text = model.model.vision_tower, model.model.language_model
        vision_config = model.config.vision_config
        heads = vision_config.num_attention_heads

        def each_image(stage: str) -> Callable[[torch.Tensor | None], None]:
            def keep_images(value: torch.Tensor | None) -> None:
                for index, one in enumerate(() if value is None else value):  # sdpa has no weights to show
                    keep(stage if index == 0 else f"image_{index}/{stage}", one)

            return keep_images

        def in_heads(stage: str) -> Callable[[torch.Tensor], None]:
            return lambda value: each_image(stage)(value.unflatten(-1, (heads, -1)))

        def on_output(module: torch.nn.Module, then: Callable[[Any], None]) -> None:
            stack.callback(module.register_forward_hook(lambda _m, _i, output: then(output)).remove)

        def on_input(module: torch.nn.Module, then: Callable[[Any], None]) -> None:
            stack.callback(module.register_forward_pre_hook(lambda _m, inputs: then(inputs[0])).remove)

        on_input(tower.embeddings, lambda pixels: each_image("pixel_values")(pixels))
        on_output(tower.embeddings, each_image("vision/patch_embeddings"))
        for i, layer in enumerate(tower.encoder.layers):
            hook_vision_layer(layer, f"vision/layer_{i:02d}", each_image, in_heads, on_input, on_output)
        on_output(tower.post_layernorm, each_image("vision/post_layernorm"))
        on_output(model.model.multi_modal_projector, each_image("projector/out"))
        on_input(text.layers[0], lambda value: keep("prefix/embeddings", value[0]))
        for i, layer in enumerate(text.layers):
            hook_text_layer(layer, f"text/layer_{i:02d}", model.config.text_config, keep, on_input, on_output)
        on_output(text.norm, lambda value: keep("text/final_norm", value[0]))
        on_output(model.lm_head, lambda value: keep("logits_before_cap", value[0]))
        stack.enter_context(record_rotation(keep))
        yield


def hook_vision_layer(layer: Any, stage: str, each_image: Any, in_heads: Any, on_input: Any, on_output: Any) -> None:
    """The stages of one SigLIP block."""
    on_output(layer.layer_norm1, each_image(f"{stage}/layer_norm1"))
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        on_output(getattr(layer.self_attn, theirs), in_heads(f"{stage}/{ours}"))
    on_output(layer.self_attn, lambda output: each_image(f"{stage}/attention_weights")(output[1]))
    on_input(layer.self_attn.out_proj, each_image(f"{stage}/attention_out"))
    on_output(layer.self_attn.out_proj, each_image(f"{stage}/out_proj"))
    on_input(layer.layer_norm2, each_image(f"{stage}/attention_residual"))
    on_output(layer.layer_norm2, each_image(f"{stage}/layer_norm2"))
    on_input(layer.mlp.fc2, each_image(f"{stage}/gelu"))
    on_output(layer.mlp.fc2, each_image(f"{stage}/fc2"))
    on_output(layer, lambda output: each_image(f"{stage}/out")(output[0] if isinstance(output, tuple) else output))


def hook_text_layer(layer: Any, stage: str, config: Any, keep: Any, on_input: Any, on_output: Any) -> None:
    """The stages of one Gemma 2 block, but for rotated queries and keys, which are local to a function."""
    on_output(
        layer.self_attn.v_proj,
        lambda value: keep(f"{stage}/value", value[0].unflatten(-1, (config.num_key_value_heads, -1))),
    )
    on_output(layer.self_attn, lambda output: keep(f"{stage}/attention_weights", output[1][0]))
    on_input(layer.self_attn.o_proj, lambda value: keep(f"{stage}/attention_out", value[0]))
    on_output(layer.self_attn.o_proj, lambda value: keep(f"{stage}/o_proj", value[0]))
    for norm in (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ):
        on_output(getattr(layer, norm), lambda value, norm=norm: keep(f"{stage}/{norm}", value[0]))
    on_input(layer.mlp.down_proj, lambda value: keep(f"{stage}/gated_gelu", value[0]))
    on_output(layer.mlp.down_proj, lambda value: keep(f"{stage}/down_proj", value[0]))
    on_output(layer, lambda output: keep(f"{stage}/out", (output[0] if isinstance(output, tuple) else output)[0]))


@contextmanager
def record_rotation(keep: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Keep what `apply_rotary_pos_emb` returns; layers call it in order."""
    rotate = modeling_gemma2.apply_rotary_pos_emb
    calls = 0

    def rotate_and_keep(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        query, key = rotate(*args, **kwargs)
        keep(f"text/layer_{calls:02d}/query", query[0].transpose(0, 1))
        keep(f"text/layer_{calls:02d}/key", key[0].transpose(0, 1))
        calls += 1
        return query, key

    with mock.patch.object(modeling_gemma2, "apply_rotary_pos_emb", rotate_and_keep):
        yield
