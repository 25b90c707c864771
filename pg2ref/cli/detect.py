"""`pg2ref detect`."""

from typing import Any

import click

from pg2ref.cli.objects import find, find_options


@click.command("detect", short_help="Where things are in an image: a line an object.")
@find_options
def command(**options: Any) -> None:
    """Find things in an image, each named by one WORDS; `-` reads the image from stdin.

    Printed is a line an object: label, left, upper, right and lower edge in pixels, score, with tabs between them. The
    score is the geometric mean of the probabilities of the four locations: how sure the model is of the box.

    \b
    pg2ref detect photo.jpg cat "red car" -m ./paligemma2-3b-mix-224 --overlay boxes.png
    pg2ref detect photo.jpg cat -m google/paligemma2-3b-mix-224 --json
    """
    find("detect", **options)
