"""`pg2ref trace`."""

import json

import click

from pg2ref.cli.files import check_writable
from pg2ref.cli.options import adapter_option, computation_options, json_option, model_option, open_model
from pg2ref.cli.progress import LayerProgress, ProgressLine
from pg2ref.cli.stdin import read_stdin
from pg2ref.errors import UsageError

SCHEMA = "pg2ref/trace/1"


@click.command("trace", short_help="Write every stage of a run to a file.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@model_option
@adapter_option
@click.option("-p", "--prompt", default="caption en", show_default=True, help="The task; `-` reads it from stdin.")
@click.option("-o", "--out", required=True, help="The trace, a safetensors file; it appears when it is whole.")
@click.option(
    "--points",
    default="all",
    show_default=True,
    help="Which stages: all; blocks, the end of each layer and what lies between the towers; or a regular expression "
    "that is searched for in their names. Attention weights are the large ones: at 896 px 1 GB a vision layer.",
)
@click.option(
    "--mode",
    type=click.Choice(["full", "stats"]),
    default="full",
    show_default=True,
    help="full: all numbers; stats: of each stage its extremes, mean, norm and 256 values, some 1.2 kB. To stay "
    "below 1 MB it keeps fewer values, 229 of each stage at 10b-224 and 196 at 28b-896, but never below 64: with more "
    "than a few --steps choose --points blocks.",
)
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Record so many tokens after the prompt too, the best each time, or until the answer ends.",
)
@click.option(
    "--with-floor",
    is_flag=True,
    help="Compute in f64, then again in float32 and in bf16 as Transformers rounds, and store how far rounding alone "
    "carries each stage: the yardstick of `compare`.",
)
@computation_options
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress, and nothing said about what was written.")
def command(
    images: tuple[str, ...],
    name: str | None,
    adapters: tuple[str, ...],
    prompt: str,
    out: str,
    points: str,
    mode: str,
    steps: int,
    with_floor: bool,
    precision: str | None,
    backend: str | None,
    preset: str,
    resize: str | None,
    window: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write what every stage of a run computes, from pixels to logits, to one safetensors file.

    The default precision is f32, but for quantised weights their own. The format, pg2ref-trace/1, is described in
    pg2ref/parity/trace_file.py, names of stages in pg2ref/trace.py.

    \b
    pg2ref trace photo.jpg -m ./mix -o run.safetensors
    pg2ref trace photo.jpg -m ./mix --with-floor -o truth.safetensors
    pg2ref trace photo.jpg -m ./mix --with-floor --mode stats --points blocks -o golden.safetensors
    pg2ref trace photo.jpg -m ./mix -p "detect cat" --steps 8 --points "layer_00/|logits" -o run.safetensors
    pg2ref trace photo.jpg -m ./pt --adapter ./my-lora -o tuned.safetensors
    pg2ref compare truth.safetensors run.safetensors
    """
    if out == "-":
        raise UsageError("--out: expected the name of a file, a trace cannot go to stdout")
    if with_floor and precision not in (None, "f64"):
        raise UsageError(f"--with-floor computes in f64, got --precision {precision}: leave one of them out")
    check_writable(out)
    sources, prompt = read_stdin(images, prompt)
    line = ProgressLine(enabled=not quiet)
    from pg2ref.demo.builtin import NAME
    from pg2ref.parity.trace_file import file_behind
    from pg2ref.recording.record import choose_points, record, trace_precision

    target = file_behind(out)
    chosen = choose_points(points)
    precision = "f64" if with_floor else precision or trace_precision(NAME if name is None else name)
    computed = {"precision": precision, "backend": backend, "preset": preset, "resize": resize, "window": window}
    model = open_model(name, quiet=quiet, adapters=adapters, **computed)
    try:
        recorded = record(
            model,
            sources,
            prompt,
            target,
            points=chosen,
            mode=mode,
            steps=steps,
            with_floor=with_floor,
            tap=LayerProgress(line, model, len(sources)),
        )
    finally:
        line.clear()
    if as_json:
        click.echo(
            json.dumps({"schema": SCHEMA, "file": out, "precision": model.described["dtype"], **recorded._asdict()})
        )
    elif not quiet:
        size = recorded.file_bytes / 1e6
        click.echo(f"{out}: {recorded.stages} stages in {model.described['dtype']}, {size:.1f} MB", err=True)
