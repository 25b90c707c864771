"""`pg2ref quantize`."""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pg2ref.cli.options import json_option, model_option, required_model
from pg2ref.cli.progress import Counter
from pg2ref.errors import UsageError

if TYPE_CHECKING:
    from pg2ref.evaluation.quantization import Report

SCHEMA = "pg2ref/quantize/1"


@click.command("quantize", short_help="Write an int8 or int4 checkpoint, and say what it costs.")
@model_option
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The new folder.")
@click.option(
    "--to",
    type=click.Choice(["int8", "int4"]),
    help="Of the language model's matrices: 8.5 or 4.5 bits a weight. Without it nothing is written: OUT is there, and "
    "--report compares it.",
)
@click.option(
    "--vision",
    type=click.Choice(["bf16", "int8"]),
    default="bf16",
    show_default=True,
    help="Of the vision tower's and the projector's matrices.",
)
@click.option(
    "--report",
    "images",
    multiple=True,
    metavar="IMAGE",
    help="Compare OUT with its source, weights, layers and scores, on this image; may be given several times.",
)
@click.option("-p", "--prompt", default="caption en", show_default=True, help="What --report asks about each image.")
@click.option(
    "-n",
    "--max-new-tokens",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Places of the answer --report compares.",
)
@json_option
def command(
    name: str | None,
    out: Path,
    to: str | None,
    vision: str,
    images: tuple[str, ...],
    prompt: str,
    max_new_tokens: int,
    as_json: bool,
) -> None:
    """Write a copy of a checkpoint with quantised weights: smaller, faster, and not quite the same.

    OUT appears when it is complete. Its layout: pg2ref/checkpoint/manifest.py and pg2ref/quantized.py.

    \b
    pg2ref quantize -m google/paligemma2-3b-mix-224 -o ./mix-int8 --to int8
    pg2ref quantize -m ./mix -o ./mix-int4 --to int4 --report photo.jpg -p "answer en how many cats?"
    pg2ref quantize -m ./mix -o ./mix-int4 --report left.jpg --report right.jpg --json
    pg2ref generate photo.jpg -m ./mix-int4
    """
    model_name = required_model(name)
    if to is None and not images:
        raise UsageError("nothing to do: add --to int8 or --to int4, or --report IMAGE to compare an OUT that is there")
    check_images(images)
    facts: dict[str, Any] = {"schema": SCHEMA, "source": model_name, "folder": os.fspath(out)}
    if to is not None:
        facts |= write(model_name, out, to, vision)
        if not as_json:
            click.echo(
                f"{out}: {to}, {facts['bytes'] / 1e9:.2f} GB of {facts['source_bytes'] / 1e9:.2f} GB, "
                f"{facts['seconds']:.0f} s"
            )
    found = compare(model_name, out, images, prompt, max_new_tokens) if images else None
    if as_json:
        click.echo(json.dumps(facts | ({"report": found.to_dict()} if found else {})))
    elif found:
        print_report(found)


def check_images(images: tuple[str, ...]) -> None:
    """Read them before minutes are spent."""
    if images:
        from pg2ref.inputs.image import read_image
    for image in images:
        read_image(image)


def write(name: str, out: Path, to: str, vision: str) -> dict[str, Any]:
    """Quantise, and say how much and how long."""
    from pg2ref.checkpoint.loader import load_checkpoint
    from pg2ref.checkpoint.open import open_checkpoint
    from pg2ref.checkpoint.quantize import quantize_checkpoint

    started, source = time.perf_counter(), open_checkpoint(name)
    with Counter("quantising", source.total_bytes) as count:
        quantize_checkpoint(source, out, to, source_name=name, vision=vision, on_bytes=count)
    written = load_checkpoint(out).total_bytes
    seconds = round(time.perf_counter() - started, 2)
    return {"to": to, "vision": vision, "bytes": written, "source_bytes": source.total_bytes, "seconds": seconds}


def compare(name: str, out: Path, images: tuple[str, ...], prompt: str, max_new_tokens: int) -> "Report":
    """The report on what is in `out`."""
    from pg2ref.evaluation.quantization import open_pair, report

    source, quantized = open_pair(name, out)
    with Counter("comparing", source.checkpoint.total_bytes) as count:
        return report(source, quantized, images, prompt, max_new_tokens=max_new_tokens, on_bytes=count)


def print_report(found: "Report") -> None:
    """Three tables."""
    click.echo("\nweights                    bits  matrices  relative rms error")
    for weight in found.weights:
        click.echo(f"  {weight.kind:<24} {weight.bits:>4}  {weight.matrices:>8}  {weight.relative_rms:.5f}")
    click.echo("\nstages                                    rms of the error over rms of the stage")
    for stage in found.stages:
        click.echo(f"  {stage.stage:<40} {stage.nrmse:.5f}")
    click.echo("\nscores of the answer            tokens  KL mean (nats)     KL max  same best token")
    for score in found.scores:
        click.echo(
            f"  {score.image:<28}  {score.tokens:>6}  {score.kl_mean:>14.6f}  {score.kl_max:>9.6f}  "
            f"{score.top1_agreement:>15.1%}"
        )
