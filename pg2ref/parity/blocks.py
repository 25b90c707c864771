"""The forward pass cut into blocks that can be run one by one, each on an input from anywhere.

A block reads stages by name (trace.py) and computes one, its output; on the way it shows a tap everything inside.
Fed with what another implementation had at the same place, it shows the error that this place alone introduces.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.model import gemma2, paligemma, projector, siglip
from pg2ref.parity.bugs.run import Kind, Run
from pg2ref.parity.trace_file import IDS
from pg2ref.trace import Prefixed, Tap, Trace

PREFIX = "prefix/embeddings"
Compute = Callable[[Run, Mapping[str, Array], Tap], Array]


class Block(NamedTuple):
    """A piece of the forward pass."""

    kind: Kind
    inputs: tuple[str, ...]
    output: str
    compute: Compute


def blocks_of(run: Run) -> list[Block]:
    """All blocks, in the order of computation: ids, pixels and tower of each image, merge, decoder, logits."""
    found = [Block("prompt", (), IDS, _ids)]
    for image in range(len(run.pixel_values)):
        found += _vision_blocks(image, run)
    features = tuple(f"{_image_prefix(image)}vision/post_layernorm" for image in range(len(run.pixel_values)))
    found.append(Block("merge", features, PREFIX, _merge))
    before = PREFIX
    for index in range(run.model.config.text.num_hidden_layers):
        output = f"text/layer_{index:02d}/out"
        found.append(Block("decoder", (before,), output, _decoder_layer(index, before)))
        before = output
    return [*found, Block("logits", (before,), "logits", _logits(before))]


def run_blocks(
    run: Run,
    blocks: Sequence[Block],
    given: Mapping[str, Array],
    points: Callable[[str], bool] = lambda stage: True,
) -> dict[str, Array]:
    """Every stage that `points` chooses of consecutive blocks, the first of which read their inputs from `given`."""
    known, trace = dict(given), Trace(points)
    for block in blocks:
        known[block.output] = block.compute(run, known, trace)
    return trace.stages


def last_rows_alone(block: Block, known: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """The input of the logits cut to the rows that OTHER has logits of: a row of them is as wide as the vocabulary."""
    return {name: array[-rows:] if name in block.inputs else array for name, array in known.items()}


def _ids(run: Run, known: Mapping[str, Array], tap: Tap) -> Array:
    return tap(IDS, np.array(run.prompt_ids, np.int64))


def _image_prefix(image: int) -> str:
    return f"image_{image}/" if image else ""


def _vision_blocks(image: int, run: Run) -> list[Block]:
    """The tower of one image; its first block takes the pixels from the run."""
    prefix, num_layers = _image_prefix(image), run.model.config.vision.num_hidden_layers

    def named(tap: Tap) -> Tap:
        return Prefixed(tap, prefix) if prefix else tap

    def pixels(run: Run, known: Mapping[str, Array], tap: Tap) -> Array:
        return named(tap)("pixel_values", run.pixel_values[image].astype(run.model.dtype))

    def patches(run: Run, known: Mapping[str, Array], tap: Tap) -> Array:
        model, values = run.model, known[f"{prefix}pixel_values"]
        return siglip.embed_patches(model.params.vision_tower, model.config.vision, values, model.ops, named(tap))

    def layer(index: int, before: str) -> Compute:
        def compute(run: Run, known: Mapping[str, Array], tap: Tap) -> Array:
            model, stage = run.model, f"vision/layer_{index:02d}"
            params = model.params.vision_tower.layers[index]
            return siglip.encode_layer(params, model.config.vision, known[before], stage, model.ops, named(tap))

        return compute

    def finish(run: Run, known: Mapping[str, Array], tap: Tap) -> Array:
        model, hidden_IE = run.model, known[outputs[-1]]
        return siglip.finish(model.params.vision_tower, model.config.vision, hidden_IE, model.ops, named(tap))

    outputs = [f"{prefix}vision/patch_embeddings"]
    found = [
        Block("pixels", (), f"{prefix}pixel_values", pixels),
        Block("vision", (f"{prefix}pixel_values",), outputs[0], patches),
    ]
    for index in range(num_layers):
        output = f"{prefix}vision/layer_{index:02d}/out"
        found.append(Block("vision", (outputs[-1],), output, layer(index, outputs[-1])))
        outputs.append(output)
    return [*found, Block("vision", (outputs[-1],), f"{prefix}vision/post_layernorm", finish)]


def _merge(run: Run, known: Mapping[str, Array], tap: Tap) -> Array:
    """Projector and text embeddings together: ports scale image embeddings on either side of this border."""
    model, embeddings = run.model, []
    for image in range(len(run.pixel_values)):
        prefix = _image_prefix(image)
        image_tap = Prefixed(tap, prefix) if prefix else tap
        features_IE = known[f"{prefix}vision/post_layernorm"]
        embeddings.append(
            projector.project(model.params.multi_modal_projector, features_IE, ops=model.ops, tap=image_tap)
        )
    merged_TD = paligemma.embed_prefix(model, np.concatenate(embeddings), run.prompt_ids, run.answer_ids)
    return tap(PREFIX, merged_TD)


def _decoder_layer(index: int, before: str) -> Compute:
    def compute(run: Run, known: Mapping[str, Array], tap: Tap) -> Array:
        model, hidden_TD, text = run.model, known[before], run.model.config.text
        cache = model.empty_cache(len(hidden_TD), len(hidden_TD) - len(run.answer_ids))
        layer, outputs, pieces = model.params.language_model.layers[index], [], []
        for rows in rows_read_together(run, len(hidden_TD)):
            part, read = Trace(tap.wants), hidden_TD[rows]
            attention = gemma2.locate_rows(text, read, [cache], model.window_policy, model.ops)
            outputs.append(gemma2.decode_layer(layer, text, read, index, attention, model.ops, part))
            cache.advance(len(read))
            pieces.append(part.stages)
        for stage in pieces[0]:
            if len(pieces) == 1 or not stage.endswith("attention_weights"):  # of each step they have another shape
                tap(stage, np.concatenate([piece[stage] for piece in pieces]))
        return np.concatenate(outputs)

    return compute


def rows_read_together(run: Run, num_rows: int) -> list[slice]:
    """All of them, or the prompt and then row by row: a leak through the mask shows only where keys are."""
    prompt_rows = num_rows - len(run.answer_ids) if run.in_steps else num_rows
    return [slice(0, prompt_rows), *(slice(row, row + 1) for row in range(prompt_rows, num_rows))]


def _logits(before: str) -> Compute:
    def compute(run: Run, known: Mapping[str, Array], tap: Tap) -> Array:
        model, hidden_TD = run.model, known[before]
        params, text = model.params.language_model, model.config.text
        final_TD = tap("text/final_norm", model.ops.rms_norm(hidden_TD, params.norm, text.rms_norm_eps))
        return gemma2.logits(params, text, final_TD, ops=model.ops, tap=tap)

    return compute
