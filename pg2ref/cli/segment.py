"""`pg2ref segment`."""

from typing import Any

import click

from pg2ref.cli.objects import find, find_options


@click.command("segment", short_help="The same with a mask for each object.")
@find_options
def command(**options: Any) -> None:
    """Find things in an image and the pixels they cover; `-` reads the image from stdin.

    Printed are the lines of `pg2ref detect`. Masks need the decoder that the model was trained with, vae-oid.npz: in
    the model's folder, or named with --vae.

    \b
    pg2ref segment photo.jpg cat -m ./paligemma2-3b-mix-224 --vae vae-oid.npz --overlay cat.png
    pg2ref segment photo.jpg cat dog -m ./paligemma2-3b-mix-224 --vae vae-oid.npz --masks masks
    """
    find("segment", **options)
