"""`pg2ref score`."""

from typing import Any

import click

from pg2ref.cli.options import (
    adapter_option,
    computation_options,
    json_option,
    model_option,
    open_model,
    quiet_option,
    required_model,
    tokenizer_option,
)
from pg2ref.cli.progress import LayerProgress, ProgressLine
from pg2ref.cli.stdin import read_stdin


@click.command("score", short_help="How likely given answers are.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@model_option
@adapter_option
@tokenizer_option
@click.option("-p", "--prompt", required=True, help="The task; `-` reads it from stdin.")
@click.option(
    "-c",
    "--continuation",
    "continuations",
    multiple=True,
    required=True,
    metavar="TEXT",
    help="An answer to score; may be given several times.",
)
@click.option("--no-end", is_flag=True, help="Score beginnings: the end of the text does not count as a token.")
@computation_options
@json_option
@quiet_option
def command(
    images: tuple[str, ...],
    name: str | None,
    prompt: str,
    continuations: tuple[str, ...],
    no_end: bool,
    as_json: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Score given answers to a prompt about an image, or about several; `-` reads one image from stdin.

    Printed is a line an answer, the likeliest first: log-probability (natural logarithm, summed over its tokens),
    perplexity, text, with tabs between them. The logarithm of the perplexity is the loss that Transformers computes for
    the answer as labels.

    \b
    pg2ref score photo.jpg -m ./paligemma2-3b-mix-224 -p "answer en what animal?" -c cat -c dog -c "a small dog"
    pg2ref score photo.jpg -m ./paligemma2-3b-mix-224 -p "caption en" -c "a cat on a sofa" --json
    """
    required_model(name)  # before anything waits for stdin
    sources, prompt = read_stdin(images, prompt)
    line = ProgressLine(enabled=not quiet)
    model = open_model(name, quiet=quiet, **choices)
    try:
        scores = model.score(
            sources, prompt, continuations, with_end=not no_end, tap=LayerProgress(line, model, len(sources))
        )
    finally:
        line.clear()
    if as_json:
        click.echo(scores.to_json())
    else:
        for one in scores.ranked():
            click.echo(f"{one.logprob:.4f}\t{one.perplexity:.4f}\t{' '.join(one.text.split())}")
    if not quiet:
        for warning in scores.warnings:
            click.echo(f"pg2ref: warning: {warning}", err=True)
