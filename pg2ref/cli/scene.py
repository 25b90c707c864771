"""`pg2ref scene`."""

import json

import click

from pg2ref.cli.files import check_writable, write_bytes


@click.command("scene", short_help="Draw a synthetic scene, with its ground truth.")
@click.option("--seed", default=0, show_default=True, help="Which scene: the same seed, the same scene.")
@click.option("--size", "size_px", default=224, show_default=True, metavar="PX", help="A side of the picture.")
@click.option(
    "-o", "--output", default="scene.png", show_default=True, metavar="FILE", help="The picture, a PNG; `-`: stdout."
)
@click.option("--truth", metavar="FILE", help="What is in it, as JSON; `-`: stdout.")
def command(seed: int, size_px: int, output: str, truth: str | None) -> None:
    """Draw a scene of coloured shapes, the world of the built-in model: one to four objects, sometimes a word.

    The truth lists the objects, the largest first: label, box in pixels (x0, y0, x1, y1), mask of what can be seen of
    it in COCO's run lengths; and the text, or null.

    \b
    pg2ref scene --seed 7 -o scene.png --truth scene.json
    pg2ref scene --seed 7 --size 448 -o - | pg2ref generate - -m ./model -p "detect red circle"
    """
    if output == truth:
        raise click.UsageError(f"picture and truth would both go to {output}: give them two names")
    for path in (output, truth):
        check_writable(path)
    from pg2ref.demo.scene import draw_scene
    from pg2ref.demo.truth import truth_of
    from pg2ref.outputs.png import png_bytes

    scene = draw_scene(seed, size_px)
    write_bytes(output, png_bytes(scene.pixels_YXC))
    if truth is not None:
        write_bytes(truth, (json.dumps(truth_of(scene)) + "\n").encode())
