"""`pg2ref tokenize`."""

import json
from itertools import groupby

import click

from pg2ref.cli.options import json_option, model_option, required_model

MOST_IMAGES = 1000


@click.command("tokenize", short_help="How a prompt becomes token ids.")
@click.argument("prompt")
@model_option
@click.option(
    "--images",
    "num_images",
    type=click.IntRange(1, MOST_IMAGES),
    default=1,
    show_default=True,
    help="How many images come with the prompt.",
)
@click.option("--raw", is_flag=True, help="Only the text's own ids: no image tokens, no <bos>, no newline.")
@json_option
def command(prompt: str, name: str | None, num_images: int, raw: bool, as_json: bool) -> None:
    """Show the ids that the model reads for a prompt: image tokens, <bos>, the text, a newline.

    \b
    pg2ref tokenize "detect cat ; dog" -m ./paligemma2-3b-mix-224
    pg2ref tokenize "<loc0512>" -m ./paligemma2-3b-mix-224 --raw --json
    """
    model_name = required_model(name)
    from pg2ref.checkpoint.open import open_config
    from pg2ref.inputs.prompt import prompt_ids
    from pg2ref.inputs.tokenizer import Tokenizer

    folder, config = open_config(model_name)
    tokenizer = Tokenizer.load(folder, config.image_token_id)
    num_image_tokens = config.vision.num_image_tokens
    if raw:
        ids = tokenizer.tokenize(prompt)
    else:
        ids = prompt_ids(tokenizer, prompt, num_images=num_images, num_image_tokens=num_image_tokens)
    if as_json:
        pieces = [tokenizer.piece(token_id) for token_id in ids]
        click.echo(json.dumps({"schema": "pg2ref/tokens/1", "ids": ids, "pieces": pieces}))
        return
    for token_id, run in groupby(ids):
        count = len(list(run))
        times = f"  x {count}" if count > 1 else ""
        click.echo(f"{token_id:>8}  {tokenizer.piece(token_id)!r}{times}")
