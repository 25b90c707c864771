"""`pg2ref generate` without an image: a scene is drawn, and the built-in model answers about it."""

import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

import click

from pg2ref.cli.answers import describe_time, print_tokens
from pg2ref.cli.files import write_bytes
from pg2ref.cli.objects import row, say_what_is_wrong, write_pictures

if TYPE_CHECKING:
    from pg2ref.api import Model
    from pg2ref.outputs.result import Result

SCHEMA = "pg2ref/scene/1"
SCENE_NAME, FOUND_NAME = "pg2ref-scene.png", "pg2ref-found.png"


def answer_about_scene(
    model: "Model",
    prompt: str | None,
    options: dict[str, Any],
    *,
    overlay: str | None,
    masks: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Draw the scene of a seed, ask `prompt` or, where it is None, for a caption and the objects, and say it all.

    With --json it is one object, `{"schema", "seed", "scene", "overlay", "truth", "results"}`: the paths of both
    pictures, what is in the scene (demo/truth.py), and a result for each prompt.
    """
    from pg2ref.demo.scene import draw_scene
    from pg2ref.demo.tasks import caption, first_questions
    from pg2ref.demo.truth import truth_of
    from pg2ref.outputs.png import png_bytes

    scene = draw_scene(options["seed"])
    folder = os.getcwd() if os.access(os.curdir, os.W_OK) else tempfile.gettempdir()
    picture = os.path.join(folder, SCENE_NAME)
    write_bytes(picture, png_bytes(scene.pixels_YXC))
    if not quiet:
        click.echo(
            f"pg2ref: no image given, drew scene {scene.seed}, {caption(scene, 'en').answer}: {picture}", err=True
        )
    results = []
    for asked in first_questions(scene) if prompt is None else [prompt]:
        results.append(model.generate(picture, asked, **options))
        if not as_json:
            click.echo(asked)
            print_answer(results[-1], options["logprobs"])
        if not quiet:
            say_what_is_wrong(results[-1], wants_objects=asked.startswith(("detect ", "segment ")))
        if verbose:
            describe_time(results[-1])
    found = next((result for result in results if result.objects), results[-1])
    drawn = overlay or (os.path.join(folder, FOUND_NAME) if found.objects else None)
    write_pictures(found, drawn, masks)
    if drawn is not None and not quiet:
        click.echo(f"pg2ref: what it found: {drawn}", err=True)
    if as_json:
        facts = {"schema": SCHEMA, "seed": scene.seed, "scene": picture, "overlay": drawn, "truth": truth_of(scene)}
        click.echo(json.dumps(facts | {"results": [result.to_dict() for result in results]}))


def print_answer(result: "Result", logprobs: int) -> None:
    """Objects a line each where there are some, else the text; with --logprobs its tokens."""
    if logprobs:
        print_tokens(result)
    else:
        click.echo("".join(map(row, result.objects)) or result.text + "\n", nl=False)
