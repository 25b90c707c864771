"""`pg2ref detect`."""

from typing import Any

import click

from pg2ref.cli.objects import find, object_options
from pg2ref.cli.options import adapter_option, computation_options, json_option, model_option, tokenizer_option


@click.command("detect", short_help="Where things are in an image: a line an object.")
@click.argument("image")
@click.argument("what", nargs=-1, required=True, metavar="WORDS...")
@model_option
@adapter_option
@tokenizer_option
@click.option("-n", "--max-new-tokens", default=256, show_default=True, help="Stop after so many tokens at the latest.")
@object_options
@computation_options
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress and no warnings.")
def command(image: str, what: tuple[str, ...], **options: Any) -> None:
    """Find things in an image, each named by one WORDS; `-` reads the image from stdin.

    Printed is a line an object: label, left, upper, right and lower edge in pixels, score, with tabs between them. The
    score is the geometric mean of the probabilities of the four locations: how sure the model is of the box.

    \b
    pg2ref detect photo.jpg cat "red car" -m ./paligemma2-3b-mix-224 --overlay boxes.png
    pg2ref detect photo.jpg cat -m google/paligemma2-3b-mix-224 --json
    """
    find("detect", image, what, **options)
