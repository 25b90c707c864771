"""`pg2ref bench`."""

from pathlib import Path

import click

from pg2ref.cli.options import json_option, model_option, threads_option
from pg2ref.cli.progress import ProgressLine
from pg2ref.errors import UsageError


@click.command("bench", short_help="Measure this machine, and a model as a share of its limits.")
@model_option
@click.option("--image", type=click.Path(path_type=Path), help="The image to read; one is drawn if unset.")
@click.option("-p", "--prompt", help="The prompt to read; ten tokens by default.")
@click.option(
    "-n",
    "--new-tokens",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    help="Tokens that each repetition decodes.",
)
@click.option("--precision", type=click.Choice(("f32", "bf16")), help="As for `pg2ref generate`.")
@threads_option
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=5, show_default=True, help="Repetitions of each measure."
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the shares as bars: FILE.png.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(
    name: str | None,
    image: Path | None,
    prompt: str | None,
    new_tokens: int,
    precision: str | None,
    repeat: int,
    plot: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure how fast this machine reads memory and multiplies, and how near to that a model's parts come.

    Reading the image (vision) and the prompt (prefill) is limited by arithmetic, decoding by reading the weights.
    Limits and model are measured in turn and medians are printed; take other work off the machine. Needs 1 GiB of
    memory beside the model.

    \b
    pg2ref bench
    pg2ref bench -m ./paligemma2-3b-mix-224
    pg2ref bench -m ./paligemma2-3b-mix-224 --precision f32 --threads 1 --repeat 3 --json
    pg2ref bench -m ./paligemma2-3b-mix-224 --plot bench.png
    """
    if name is None and (image or prompt or precision):
        raise UsageError("--image, --prompt and --precision are a model's: add -m FOLDER")
    from pg2ref.benchmark import picture
    from pg2ref.benchmark.measure import DEFAULT_PROMPT, bench_machine, bench_model

    if plot is not None:
        picture.check_path(plot)
    line = ProgressLine(enabled=not quiet)
    try:
        if name is None:
            report = bench_machine(repeat, line.show)
        else:
            from pg2ref.api import load

            model = load(name, precision=precision, backend="numba")
            report = bench_model(
                model, image, prompt or DEFAULT_PROMPT, new_tokens=new_tokens, repeat=repeat, on_step=line.show
            )
    finally:
        line.clear()
    click.echo(report.to_json() if as_json else report.to_table())
    if plot is not None:
        picture.save(report, plot)
