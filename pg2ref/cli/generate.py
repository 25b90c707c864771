"""`pg2ref generate`."""

import sys
from typing import TYPE_CHECKING, Any

import click

from pg2ref.cli.answers import describe, describe_time, print_tokens
from pg2ref.cli.drawn_scene import answer_about_scene
from pg2ref.cli.objects import check_pictures, object_options, say_what_is_wrong, write_pictures
from pg2ref.cli.options import (
    adapter_option,
    computation_options,
    json_option,
    length_option,
    model_option,
    open_model,
    quiet_option,
    sampling_options,
    tokenizer_option,
)
from pg2ref.cli.progress import LayerProgress, ProgressLine
from pg2ref.cli.stdin import read_stdin
from pg2ref.errors import UsageError

if TYPE_CHECKING:
    from pg2ref.answer import Answer
    from pg2ref.api import Model
    from pg2ref.inputs.image import Frame

DEFAULT_PROMPT = "caption en"


@click.command("generate", short_help="Answer a prompt about an image.")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@model_option
@adapter_option
@tokenizer_option
@click.option("-p", "--prompt", help=f"The task, `{DEFAULT_PROMPT}` by default; `-` reads it from stdin.")
@length_option
@sampling_options
@click.option("--video", metavar="FILE", help="Instead of images: frames of a video file, or of a folder of images.")
@click.option("--frames", type=int, metavar="N", help="How many frames of the video at most.  [default: 16]")
@click.option(
    "--stride",
    type=int,
    metavar="N",
    help="Take every Nth frame from the first on. Default: spread over all.",
)
@click.option(
    "--beams",
    default=1,
    show_default=True,
    help="Above 1: beam search. With beams, an answer that -n cuts may end early or be empty.",
)
@click.option(
    "--logprobs",
    default=0,
    show_default=True,
    metavar="K",
    help="Print a line a token, with its log-probability and the K likeliest.",
)
@click.option("--no-cache", is_flag=True, help="Compute everything anew for each token: a check, slow.")
@object_options
@computation_options
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what was read and how long each phase took.")
@quiet_option
def command(
    images: tuple[str, ...],
    name: str | None,
    adapters: tuple[str, ...],
    tokenizer_file: str | None,
    prompt: str | None,
    video: str | None,
    frames: int | None,
    stride: int | None,
    no_cache: bool,
    precision: str | None,
    backend: str | None,
    preset: str,
    resize: str | None,
    window: str | None,
    overlay: str | None,
    masks: str | None,
    vae: str | None,
    loc_scale: int | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Answer a prompt about an image, about several, or about a video; `-` reads one image from stdin.

    Frames of a video are read as several images are. GIF, WebP, APNG, AVIF and folders of frames need nothing else,
    other videos the `video` extra.

    Without an image, the built-in model answers about a synthetic scene: it is drawn into pg2ref-scene.png, captioned
    and searched, or asked what -p asks, and what was found is drawn into pg2ref-found.png.

    \b
    pg2ref generate
    pg2ref generate --seed 7 -p "answer en how many objects?"
    pg2ref generate photo.jpg -m ./paligemma2-3b-mix-224
    pg2ref generate photo.jpg -m google/paligemma2-3b-mix-224 -p "answer en how many cats?"
    pg2ref generate photo.jpg -m google/paligemma2-3b-pt-224 --adapter ./my-lora
    pg2ref generate left.png right.png -m ./nlvr2 -p "answer en both show a dog" --json
    pg2ref generate --video clip.mp4 --frames 16 --stride 30 -m ./activitynet -p "caption en"
    curl -s https://example.org/cat.jpg | pg2ref generate - -m ./mix -p ocr
    """
    if not images and video is None and name is not None:
        raise UsageError("no image given: name one; without -m too, the built-in model answers about a scene it draws")
    check_pictures(overlay, masks)
    sources, asked = read_stdin(images, DEFAULT_PROMPT if prompt is None else prompt)
    sources += frames_of(video, frames, stride, bool(images))
    computed = {"precision": precision, "backend": backend, "preset": preset, "resize": resize, "window": window}
    files: dict[str, Any] = {"adapters": adapters, "tokenizer_file": tokenizer_file, "vae": vae}
    model = open_model(name, quiet=quiet, loc_scale=loc_scale, **files, **computed)
    if verbose:
        describe(model)
    options["use_cache"] = not no_cache
    wanted: dict[str, Any] = {
        "overlay": overlay,
        "masks": masks,
        "as_json": as_json,
        "quiet": quiet,
        "verbose": verbose,
    }
    if sources:
        answer_about_images(model, sources, asked, options, **wanted)
    else:
        answer_about_scene(model, None if prompt is None else asked, options, **wanted)


def answer_about_images(
    model: "Model",
    sources: list[Any],
    prompt: str,
    options: dict[str, Any],
    *,
    overlay: str | None,
    masks: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Answer, print, write the pictures, and say what else there is to say."""
    line = ProgressLine(enabled=not quiet)
    answer = model.stream(sources, prompt, tap=LayerProgress(line, model, len(sources)), **options)
    try:
        print_answer(answer, line, as_json, options["max_new_tokens"], options["logprobs"])
    finally:
        line.clear()
    result = answer.result()
    write_pictures(result, overlay, masks)
    if not quiet:
        say_what_is_wrong(result, wants_objects=overlay is not None or masks is not None)
    if verbose:
        describe_time(result)


def frames_of(video: str | None, frames: int | None, stride: int | None, has_images: bool) -> list["Frame"]:
    """The frames that --video, --frames and --stride ask for; none without --video."""
    if has_images and video is not None:
        raise UsageError("expected images, or --video FILE: one of them")
    if video is None:
        if (frames, stride) != (None, None):
            raise UsageError("--frames and --stride choose frames of a --video: there is none")
        return []
    from pg2ref.inputs.video import DEFAULT_FRAMES, read_frames

    return read_frames(video, frames=DEFAULT_FRAMES if frames is None else frames, stride=stride)


def print_answer(answer: "Answer", line: ProgressLine, as_json: bool, max_new_tokens: int, logprobs: int) -> None:
    """The text as it comes, or one JSON object at the end, or a line a token with its likeliest rivals."""
    streams_text = not as_json and not logprobs
    for event in answer:
        line.clear()
        if streams_text:
            click.echo(event.text, nl=False)
            sys.stdout.flush()
        if not (streams_text and sys.stdout.isatty()):
            line.show("answering", len(answer.events), max_new_tokens, f"{len(answer.events)} tokens")
    line.clear()
    if as_json:
        click.echo(answer.result().to_json())
    elif logprobs:
        print_tokens(answer.result())
    else:
        click.echo()
