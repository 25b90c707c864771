"""A diagnosis from two traces alone: pieces of the forward pass that need no matrix.

Scales, norms, rotation, attention, the mask and the last soft cap can be computed from stages that OTHER has recorded.
What they need of the weights, the scales of the norms, is worked out from the reference's own inputs and outputs. The
pieces stand in for the blocks of blocks.py, and the same bugs are tried on them. Matrices are out of reach, and so is
what lies between them: GELU and the head.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from pg2ref.adapted import adapted_rows
from pg2ref.arrays import Array, widen
from pg2ref.config import Gemma2Config, PaliGemmaConfig, SiglipConfig
from pg2ref.errors import Pg2RefError
from pg2ref.model import gemma2, rope
from pg2ref.model.backend import REFERENCE
from pg2ref.model.gemma2 import DecoderLayer, Gemma2Params
from pg2ref.model.ops import Affine
from pg2ref.model.paligemma import PaliGemma, Params
from pg2ref.model.siglip import SiglipParams
from pg2ref.parity.blocks import PREFIX, Block, Compute, rows_read_together
from pg2ref.parity.bugs.run import Kind, Run
from pg2ref.parity.diagnose import Diagnosis, diagnose, joined_stages
from pg2ref.parity.difference import F64, measure
from pg2ref.parity.records import Record
from pg2ref.parity.replay import run_behind
from pg2ref.parity.trace_file import IDS
from pg2ref.trace import Tap

SAME = 2e-6  # an input that is this near to the reference's is the reference's, but for rounding in float32
NORMS = (  # of a decoder layer: which stage goes in, and which comes out
    ("input_layernorm", None, "input_layernorm"),
    ("post_attention_layernorm", "o_proj", "post_attention_layernorm"),
    ("post_feedforward_layernorm", "down_proj", "post_feedforward_layernorm"),
)
Stages = Mapping[str, Array]


def diagnose_without_model(reference: Record, other: Record, *, precision: str = "f32") -> Diagnosis | None:
    """As diagnose.py, of what needs no matrix; None where the reference is no trace of pg2ref's in full."""
    stages = joined_stages(reference)
    if "config" not in reference.facts or not {"pixel_values", f"text/{_layer(0)}/out"} <= stages.keys():
        return None
    try:
        pieces = pieces_of(stages, joined_stages(other))
        run = run_behind(model_behind(reference, stages), reference, other)
        return diagnose(run, other, precision=precision, blocks=pieces)
    except (Pg2RefError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None  # OTHER has nothing in full, or other shapes than the model's; or the reference garbles its facts


def model_behind(reference: Record, stages: Stages) -> PaliGemma:
    """The reference's config with the norms that its stages show, a projector of factor 1, and no matrices."""
    read = json.loads(reference.facts["config"])
    text = Gemma2Config(**{**read["text"], "layer_types": tuple(read["text"]["layer_types"])})
    vision = SiglipConfig(**read["vision"])
    ends = {"vision": vision, "text": text, "eos_token_ids": tuple(read["eos_token_ids"])}
    config = PaliGemmaConfig(**{**read, **ends})
    last = _last_vision_layer(vision)
    layers = []
    for index in range(text.num_hidden_layers):
        found = {
            name: rms_scale(stages, _input_of(index, before), f"text/{_layer(index)}/{after}", text.rms_norm_eps)
            for name, before, after in NORMS
        }
        layers.append(DecoderLayer(**{name: found.get(name) for name in DecoderLayer._fields}))  # type: ignore[arg-type]
    params = Params(
        SiglipParams(cast(Any, None), cast(Any, None), (), affine(stages, last, "vision/post_layernorm", vision)),
        Affine(np.ones((1, 1)), np.zeros(1)),
        Gemma2Params(cast(Any, None), tuple(layers), cast(Any, None), np.zeros((1, 1))),
    )
    return PaliGemma(params, config, F64, REFERENCE)


def rms_scale(stages: Stages, before: str, after: str, eps: float) -> Array | None:
    """`scale_D` of an RMSNorm: of each channel, what the output is of the normalised input, less 1."""
    if before not in stages or after not in stages:
        return None
    rows = min(len(stages[before]), len(stages[after]))  # steps are recorded without their embeddings
    x_TD, out_TD = (widen(stages[name][:rows], F64) for name in (before, after))
    normed_TD = x_TD / np.sqrt(np.mean(np.square(x_TD), axis=-1, keepdims=True) + eps)
    return (normed_TD * out_TD).sum(axis=0) / np.square(normed_TD).sum(axis=0) - 1


def affine(stages: Stages, before: str, after: str, config: SiglipConfig) -> Affine:
    """Scale and shift of a LayerNorm: of each channel, the line through outputs over normalised inputs."""
    if before not in stages or after not in stages:
        return Affine(np.ones(1), np.zeros(1))
    x_TE, out_TE = (widen(stages[name], F64) for name in (before, after))
    normed_TE = REFERENCE.layer_norm(x_TE, np.ones(1), np.zeros(1), config.layer_norm_eps)
    middle_E, out_middle_E = normed_TE.mean(axis=0), out_TE.mean(axis=0)
    centred_TE = normed_TE - middle_E
    scale_E = (centred_TE * (out_TE - out_middle_E)).sum(axis=0) / np.square(centred_TE).sum(axis=0)
    return Affine(scale_E, out_middle_E - scale_E * middle_E)


def pieces_of(reference: Stages, other: Stages) -> Callable[[Run], list[Block]]:
    """What can be computed of a run from OTHER's stages, and from the reference's where both are the same."""

    def theirs(name: str) -> Array:
        return widen(other[name], F64)

    def pieces(run: Run) -> list[Block]:
        config, right_ids = run.model.config, [*run.prompt_ids, *run.answer_ids]
        found = [piece("prompt", IDS, lambda run: np.array(run.prompt_ids, np.int64))]
        found.append(piece("pixels", "pixel_values", lambda run: run.pixel_values[0]))
        last = _last_vision_layer(config.vision)
        if last in other and {last, "vision/post_layernorm"} <= reference.keys():
            found.append(piece("vision", "vision/post_layernorm", lambda run: finish(run, theirs(last))))
        if {PREFIX, "projector/out"} <= reference.keys() and "projector/out" in other:
            found.append(piece("merge", PREFIX, lambda run: merge(run, right_ids, reference, other)))
        for index in range(config.text.num_hidden_layers):
            found += layer_pieces(index, reference, other)
        if "logits_before_cap" in other:
            cap = lambda run: run.model.ops.soft_cap(  # noqa: E731
                theirs("logits_before_cap"), run.model.config.text.final_logit_softcapping
            )
            found.append(piece("logits", "logits", cap))
        return found

    return pieces


def layer_pieces(index: int, reference: Stages, other: Stages) -> list[Block]:
    """Of one decoder layer: norms, rotation if the layer was given what the reference was, and attention."""
    stage = f"text/{_layer(index)}"

    def norm(name: str, before: str, after: str) -> list[Block]:
        def compute(run: Run) -> Array:
            scale_D = getattr(run.model.params.language_model.layers[index], name)
            return run.model.ops.rms_norm(widen(other[before], F64), scale_D, run.model.config.text.rms_norm_eps)

        is_known = {before, after} <= other.keys() and {before, after} <= reference.keys()
        return [piece("decoder", after, compute)] if is_known and len(other[before]) == len(other[after]) else []

    def turned(name: str) -> Block:
        rows = len(other[name])
        return piece("decoder", name, lambda run: turned_again(run, reference[name][:rows]))

    def attend(run: Run) -> Array:
        return attention_out(run, index, *(widen(other[f"{stage}/{leaf}"], F64) for leaf in ("query", "key", "value")))

    first, *rest = (norm(name, _input_of(index, before), f"{stage}/{after}") for name, before, after in NORMS)
    turns = [f"{stage}/{leaf}" for leaf in ("query", "key") if {f"{stage}/{leaf}"} <= other.keys() & reference.keys()]
    found = first + ([turned(name) for name in turns] if is_same(f"{stage}/input_layernorm", reference, other) else [])
    if {f"{stage}/{leaf}" for leaf in ("query", "key", "value")} <= other.keys():
        found.append(piece("decoder", f"{stage}/attention_out", attend))
    return found + [block for blocks in rest for block in blocks]


def is_same(stage: str, reference: Stages, other: Stages) -> bool:
    """Whether OTHER has what the reference has, but for rounding."""
    if stage not in reference or stage not in other or len(other[stage]) > len(reference[stage]):
        return False
    expected = reference[stage][: len(other[stage])]
    return expected.size == other[stage].size and measure(expected, other[stage]).nrmse < SAME


def piece(kind: Kind, output: str, compute: Callable[[Run], Array]) -> Block:
    """A block that reads nothing but what its function already has."""

    def run_piece(run: Run, known: Stages, tap: Tap) -> Array:
        return tap(output, compute(run))

    return Block(kind, (), output, cast(Compute, run_piece))


def finish(run: Run, hidden_IE: Array) -> Array:
    """The vision tower's last norm."""
    model = run.model
    return model.ops.layer_norm(
        hidden_IE, *model.params.vision_tower.post_layernorm, model.config.vision.layer_norm_eps
    )


def merge(run: Run, right_ids: list[int], reference: Stages, other: Stages) -> Array:
    """Text rows of the reference, scaled anew, and image rows in the places of the run's ids.

    Image rows are the reference's where the projector was given the same, so that a factor behind it shows.
    """
    model, ids = run.model, np.array([*run.prompt_ids, *run.answer_ids])
    scale, right_TD = model.config.text.embedding_scale, widen(reference[PREFIX], F64)
    row_of = {token_id: row_D / scale for token_id, row_D in zip(right_ids, right_TD, strict=False)}
    found_TD = np.stack([row_of.get(int(token_id), np.full(right_TD.shape[1], np.nan)) for token_id in ids])
    found_TD = model.ops.scale(found_TD, scale)
    whose = reference if is_same("vision/post_layernorm", reference, other) else other
    images_ID = widen(whose["projector/out"], F64)
    is_image_T = ids == model.config.image_token_id
    if is_image_T.sum() != len(images_ID):
        return right_TD
    found_TD[is_image_T] = images_ID * adapted_rows(model.params.multi_modal_projector.weight, F64, 0, 1)
    return found_TD


def turned_again(run: Run, turned_TNH: Array) -> Array:
    """The reference's queries or keys turned back, and then as the run turns them."""
    text = run.model.config.text
    positions_T = np.arange(len(turned_TNH)) + rope.FIRST_POSITION
    cos_TR, sin_TR = rope.rotation_table(positions_T, text.head_dim, text.rope_theta, F64)
    raw_TNH = rope.rotate(widen(turned_TNH, F64), cos_TR, -sin_TR)
    return run.model.ops.rotate(
        raw_TNH, *run.model.ops.rotation_table(positions_T, text.head_dim, text.rope_theta, F64)
    )


def attention_out(run: Run, index: int, query_TNH: Array, key_TKH: Array, value_TKH: Array) -> Array:
    """What one layer's attention gives of these queries, keys and values, heads side by side."""
    model, text, rows = run.model, run.model.config.text, len(query_TNH)
    query_TNH = query_TNH.reshape(rows, text.num_attention_heads, text.head_dim)
    key_TKH, value_TKH = (a.reshape(rows, text.num_key_value_heads, text.head_dim) for a in (key_TKH, value_TKH))
    cache = model.empty_cache(rows, rows - len(run.answer_ids))
    options: dict[str, Any] = {"scale": text.query_scale, "logit_cap": text.attn_logit_softcapping}
    heads = []
    for part in rows_read_together(run, rows):
        read_TNH = query_TNH[part]
        located = gemma2.locate_rows(text, read_TNH, [cache], model.window_policy, model.ops)
        is_sliding = text.layer_types[index] == "sliding_attention"
        ranges = (located.sliding if is_sliding else located.full)[0]
        keys, values = key_TKH[: part.stop], value_TKH[: part.stop]
        heads.append(model.ops.attend(read_TNH, keys, values, *ranges, **options))
        cache.advance(len(read_TNH))
    return np.concatenate(heads).reshape(rows, -1)


def _layer(index: int) -> str:
    return f"layer_{index:02d}"


def _input_of(index: int, leaf: str | None) -> str:
    """A stage of a layer, or the end of what comes before it."""
    if leaf is not None:
        return f"text/{_layer(index)}/{leaf}"
    return f"text/{_layer(index - 1)}/out" if index else PREFIX


def _last_vision_layer(config: SiglipConfig) -> str:
    return f"vision/{_layer(config.num_hidden_layers - 1)}/out"
