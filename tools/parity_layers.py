"""Compares the layers of a published size with Transformers, without its 55 GB: two layers a tower.

    python tools/parity_layers.py 28b-896 --tokens 4200

A checkpoint with the size's own widths, heads, scales and window, but two layers a tower (the decoder's are a sliding
and a full one) and a small vocabulary, gets seeded random weights; both libraries run it on an image and a text that
together reach past the sliding window. The table is that of tools/parity_table.py. Needs the `parity` extra.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
import parity_table
import random_checkpoint
import transformers_stages
from released_json import cut_config
from tool_help import help_of

from pg2ref.arrays import Array
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.model import paligemma
from pg2ref.model.paligemma import PaliGemma
from pg2ref.published import PUBLISHED
from pg2ref.trace import Trace

ANSWER_TOKENS = 40  # the rest of the text is prompt


def points(stage: str) -> bool:
    """Everything but the two stages that would not fit in memory several times over."""
    return not stage.endswith(("attention_weights", "gated_gelu"))


def our_stages(folder: Path, dtype: type, pixel_values: Array, ids: list[int], prefix_length: int) -> dict[str, Array]:
    """Stages of pg2ref in float32 or float64."""
    checkpoint = load_checkpoint(folder)
    model = PaliGemma(checkpoint.params, checkpoint.config, np.dtype(dtype))
    trace = Trace(points)
    embeddings = paligemma.encode_images(model, list(pixel_values), tap=trace)
    paligemma.forward(model, embeddings, ids, prefix_length, tap=trace)
    return trace.stages


@click.command(help=help_of(__doc__))
@click.argument("size", type=click.Choice(list(PUBLISHED)))
@click.option("--tokens", default=4200, show_default=True, help="Of image, prompt and answer together.")
@click.option("--seed", default=0, show_default=True)
def main(size: str, tokens: int, seed: int) -> None:
    """Write the reduced checkpoint, run both, print."""
    vision = PUBLISHED[size].vision
    rng = np.random.default_rng(seed)
    config = cut_config(size)
    ids = [config["image_token_index"]] * vision.num_image_tokens
    ids += rng.integers(2, config["image_token_index"], tokens - len(ids)).tolist()
    pixel_values = rng.uniform(-1, 1, (1, 3, vision.image_size, vision.image_size)).astype(np.float32)
    prefix_length = tokens - ANSWER_TOKENS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_checkpoint.write_checkpoint(folder, config, seed=seed, tokenizer=False)
        model = transformers_stages.load_model(folder)
        theirs = transformers_stages.record(model, pixel_values, ids, prefix_length, points)
        del model
        ours = our_stages(folder, np.float32, pixel_values, ids, prefix_length)
        truth = our_stages(folder, np.float64, pixel_values, ids, prefix_length)
    rows = parity_table.compare(truth, ours, theirs)
    parity_table.print_table(rows)
    parity_table.print_closer(rows)


if __name__ == "__main__":
    main()
