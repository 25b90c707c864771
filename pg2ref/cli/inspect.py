"""`pg2ref inspect`."""

import json
from typing import TYPE_CHECKING, Any

import click

from pg2ref.cli.options import json_option, model_option, required_model
from pg2ref.cli.progress import ProgressLine
from pg2ref.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from pg2ref.checkpoint.loader import Checkpoint

LISTED = 8  # tensors named in a message; the rest is counted


@click.command("inspect", short_help="What a checkpoint is, and whether it is whole.")
@click.argument("name_argument", metavar="[MODEL]", required=False)
@model_option
@click.option("--keys", is_flag=True, help="List every tensor with its type and shape.")
@click.option("--verify", is_flag=True, help="Read every number and look for NaN and infinity.")
@json_option
def command(name_argument: str | None, name: str | None, keys: bool, verify: bool, as_json: bool) -> None:
    """Say what a checkpoint is: size, resolution, layers, caps, window, and whether every tensor fits.

    Exits with 5 where it is not whole; --verify also reads every weight.

    \b
    pg2ref inspect ./paligemma2-3b-mix-224
    pg2ref inspect google/paligemma2-3b-mix-224 --verify
    """
    if name_argument and name and name_argument != name:
        raise UsageError("two models given: name one, as the argument or with -m")
    model_name = required_model(name_argument or name)
    from pg2ref.checkpoint.loader import check_vocabulary, type_name
    from pg2ref.checkpoint.open import open_checkpoint
    from pg2ref.inputs.tokenizer import Tokenizer

    checkpoint = open_checkpoint(model_name)
    tokenizer = Tokenizer.load(checkpoint.folder, checkpoint.config.image_token_id)
    check_vocabulary(checkpoint, tokenizer.vocab_size)
    if verify:
        check_numbers(checkpoint)
    description = describe(checkpoint) | {"tokenizer_pieces": tokenizer.vocab_size, "numbers_checked": verify}
    tensors = {
        key: {"type": type_name(weight), "shape": list(weight.shape)}
        for key, weight in sorted(checkpoint.weights.items(), key=lambda item: item[0])
    }
    if as_json:
        listed = {"keys": tensors} if keys else {}
        click.echo(json.dumps({"schema": "pg2ref/inspect/1", **description, **listed}))
        return
    for key, value in description.items():
        click.echo(f"{key.replace('_', ' '):<26} {'yes' if value is True else 'no' if value is False else value}")
    for key, tensor in tensors.items() if keys else ():
        click.echo(f"{key}  {tensor['type']} {tensor['shape']}")


def check_numbers(checkpoint: "Checkpoint") -> None:
    """Raises CheckpointError with the names of all tensors that hold NaN or infinity."""
    from pg2ref.checkpoint.loader import not_finite_tensors

    line, done = ProgressLine(), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        line.show("checking numbers", done, checkpoint.total_bytes, f"{done / 1e9:.1f} GB")

    try:
        names = list(not_finite_tensors(checkpoint.tensors, on_bytes))
    finally:
        line.clear()
    if names:
        listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
        raise CheckpointError(
            f"{checkpoint.folder}: {len(names)} of {len(checkpoint.tensors)} tensors hold NaN or infinity: {listed}; "
            "download the weights again"
        )


def describe(checkpoint: "Checkpoint") -> dict[str, Any]:
    """The facts, in the order in which they are printed."""
    from pg2ref.published import PUBLISHED, PUBLISHED_1

    config, text, vision = checkpoint.config, checkpoint.config.text, checkpoint.config.vision
    family, sizes = ("PaliGemma 2", PUBLISHED) if text.post_norms else ("PaliGemma 1", PUBLISHED_1)
    published = [
        size
        for size, known in sizes.items()
        if known.text == text and known.vision == vision and known.image_token_id == config.image_token_id
    ]
    params = checkpoint.params.language_model
    sliding = sum(kind == "sliding_attention" for kind in text.layer_types)
    return {
        "model": f"{family} {published[0]}" if published else f"{family}, a size of its own",
        "folder": str(checkpoint.folder),
        "files": len(checkpoint.files),
        "bytes": checkpoint.total_bytes,
        "tensors": len(checkpoint.weights),
        "parameters": sum(weight.size for weight in checkpoint.weights.values()),
        "weights": checkpoint.weight_type,
        "image_size_px": vision.image_size,
        "image_tokens": vision.num_image_tokens,
        "vision_layers": vision.num_hidden_layers,
        "vision_width": vision.hidden_size,
        "decoder_layers": f"{text.num_hidden_layers} ({sliding} sliding, {text.num_hidden_layers - sliding} full)",
        "decoder_width": text.hidden_size,
        "query_heads": text.num_attention_heads,
        "key_value_heads": text.num_key_value_heads,
        "head_width": text.head_dim,
        "query_scale": f"{text.query_pre_attn_scalar:g} ** -0.5",
        "sliding_window": text.sliding_window,
        "attention_soft_cap": text.attn_logit_softcapping,
        "logit_soft_cap": text.final_logit_softcapping,
        "vocabulary": text.vocab_size,
        "output_matrix": "tied to the embedding" if params.lm_head is params.embed_tokens else "its own lm_head",
    }
