"""`pg2ref compare`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pg2ref.cli.options import adapter_option, json_option, model_option, required_model
from pg2ref.errors import Pg2RefError, UsageError

if TYPE_CHECKING:
    from pg2ref.parity.bugs.run import Run
    from pg2ref.parity.compare import Comparison, StageComparison
    from pg2ref.parity.diagnose import Diagnosis
    from pg2ref.parity.records import Record

SCHEMA = "pg2ref/compare/1"
DIVERGES = 1
HEAD = (
    "stage                                     NRMSE    noise   max error  cosine    scale     ulp  outliers  verdict"
)


@click.command("compare", short_help="Compare two records of a run, and name the first divergence.")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@click.option(
    "--map",
    "map_name",
    metavar="MAP",
    help="How OTHER's names and axes become ours: transformers, big_vision, mlx, or a TOML file "
    "(pg2ref/parity/name_map.py). A trace needs none.",
)
@click.option(
    "--precision",
    type=click.Choice(["f32", "bf16"]),
    help="OTHER's arithmetic, whose noise is allowed for. Default: what OTHER says, or what its numbers look like.",
)
@click.option(
    "--require",
    "required",
    metavar="REGEX",
    help="Stages of REFERENCE that OTHER has to have, or nothing is compared: a misnamed stage is judged by nobody.",
)
@click.option("--tolerance", type=float, help="Allow this relative error at each stage, instead of the noise floor's.")
@model_option
@adapter_option
@click.option("--isolate", is_flag=True, help="Run each block of -m MODEL on OTHER's own input, in f64, as well.")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="IMAGE",
    help="With -m: an image the run was given, before resizing, so that other ways to resize it are tried; may be "
    "given several times.",
)
@click.option("--all", "show_all", is_flag=True, help="Print every stage, not the ends of blocks and what diverges.")
@json_option
def command(
    reference: Path,
    other: Path,
    map_name: str | None,
    precision: str | None,
    required: str | None,
    tolerance: float | None,
    isolate: bool,
    name: str | None,
    adapters: tuple[str, ...],
    images: tuple[str, ...],
    show_all: bool,
    as_json: bool,
) -> None:
    """Compare OTHER with REFERENCE stage by stage, in the order of computation.

    REFERENCE is a trace, best one made `--with-floor`; OTHER is a trace, an npz, a safetensors file, or a folder of npy
    or safetensors files. A stage is close where its error is no more than a small multiple of the noise floor, that is
    of what rounding alone does there.

    What diverges is diagnosed: each mistake that `pg2ref break --list` knows is tried on the first block that differs,
    and the one that reproduces OTHER's numbers is named. With -m MODEL, the checkpoint of REFERENCE (and --adapter, if
    it had any), that is every block; from two records in full, what needs no matrix. --isolate shows the error that
    each block introduces, apart from what it was given.

    Exits with 0 where all stages are close, 1 where one diverges, 2 where they cannot be compared.

    \b
    pg2ref compare truth.safetensors run.safetensors
    pg2ref compare truth.safetensors port.npz --map port.toml -m ./mix
    pg2ref compare truth.safetensors dump/ --map transformers --isolate -m ./mix
    pg2ref compare golden.safetensors port.safetensors --require "/out$|logits" --json
    """
    if isolate:
        required_model(name)
    if adapters and name is None:
        raise UsageError("--adapter is for a diagnosis, which needs the model: add -m MODEL")
    if images and name is None:
        raise UsageError("--image is for a diagnosis, which needs the model: add -m MODEL")
    with trouble():
        from pg2ref.parity.compare import compare
        from pg2ref.parity.name_map import load_map
        from pg2ref.parity.records import open_record

        expected = open_record(reference)
        found = open_record(other, load_map(map_name) if map_name else None)
        comparison = compare(expected, found, precision=precision, tolerance=tolerance, required=required)
        diagnosis = None
        if name is not None:
            run = run_of(name, adapters, images, expected, found, is_needed=isolate or not comparison.is_close)
            comparison, diagnosis = look_closer(comparison, run, found, isolate=isolate)
        elif not comparison.is_close:
            from pg2ref.parity.weightless import diagnose_without_model

            diagnosis = diagnose_without_model(expected, found, precision=comparison.precision)
    if as_json:
        diagnosed = {"diagnosis": diagnosis.to_dict()} if diagnosis else {}
        click.echo(json.dumps({"schema": SCHEMA, **comparison.to_dict(), **diagnosed}, allow_nan=False))
    else:
        print_table(comparison, show_all)
        if diagnosis:
            only_shapes = all(stage.verdict == "shape" for stage in comparison.stages if not stage.is_good)
            print_diagnosis(diagnosis, with_model=name is not None, only_shapes=only_shapes)
    sys.exit(0 if comparison.is_close else DIVERGES)


def run_of(
    name: str,
    adapters: tuple[str, ...],
    images: tuple[str, ...],
    expected: "Record",
    found: "Record",
    *,
    is_needed: bool,
) -> "Run | None":
    """REFERENCE's run with -m MODEL; None where nobody needs it, as it takes inputs that may not be recorded."""
    from pg2ref.api import load
    from pg2ref.inputs.image import read_image
    from pg2ref.parity.adapters_used import check_adapters
    from pg2ref.parity.replay import check_model, run_behind

    pictures = [read_image(image) for image in images]
    check_adapters(expected, adapters)
    numbers = load(name, precision="f64", adapters=adapters).numbers
    check_model(numbers, expected)
    return run_behind(numbers, expected, found, pictures) if is_needed else None


def look_closer(
    comparison: "Comparison", run: "Run | None", found: "Record", *, isolate: bool
) -> tuple["Comparison", "Diagnosis | None"]:
    """The comparison with its isolated blocks, where they are asked for, and the diagnosis of what diverges."""
    from pg2ref.parity.diagnose import diagnose
    from pg2ref.parity.isolate import isolate as isolate_blocks

    if run is None:
        return comparison, None
    if isolate:
        blocks = isolate_blocks(run._replace(answer_ids=()), found, precision=comparison.precision)
        comparison = replace(comparison, isolated=tuple(blocks))
    return comparison, None if comparison.is_close else diagnose(run, found, precision=comparison.precision)


@contextmanager
def trouble() -> Iterator[None]:
    """Every error means that nothing was compared: exit code 2, as diff(1) has it.

    Numbers of OTHER that are not finite, or overflow, are in the verdict and no matter for a warning.
    """
    import numpy as np

    try:
        with np.errstate(all="ignore"):
            yield
    except Pg2RefError as error:
        raise UsageError(str(error)) from error


def print_table(comparison: "Comparison", show_all: bool) -> None:
    """The stages, the sum of it, and where the first divergence is."""
    shown = comparison.stages if show_all else chosen(comparison.stages)
    print_stages(f"{comparison.other} against {comparison.reference}, noise of {comparison.precision}", shown)
    if comparison.isolated:
        rows = comparison.isolated if show_all else chosen(comparison.isolated)
        print_stages("\neach block on OTHER's own input", rows)
    click.echo()
    for line in summary(comparison):
        click.echo(line)


def chosen(stages: "tuple[StageComparison, ...]") -> "list[StageComparison]":
    """Ends of blocks, and everything that is not close."""
    from pg2ref.trace import BLOCK_ENDS

    return [stage for stage in stages if not stage.is_good or stage.stage.endswith(("input/ids", *BLOCK_ENDS))]


def print_stages(title: str, stages: "tuple[StageComparison, ...] | list[StageComparison]") -> None:
    """A table; `noise` is the error as a multiple of the noise floor."""
    click.echo(f"{title}\n{HEAD}")
    for stage in stages:
        if stage.nrmse is None:
            click.echo(f"{stage.stage:<40}  {list(stage.shape)} against {list(stage.other_shape)}  {stage.verdict}")
            continue
        noise = "-" if stage.noise_ratio is None else f"{stage.noise_ratio:.2f}"
        click.echo(
            f"{stage.stage:<40} {stage.nrmse:>8.1e} {noise:>7} {stage.max_abs:>10.2e} {stage.cosine:>8.5f} "
            f"{stage.scale:>8.5f} {stage.ulp:>7.1f} {stage.outliers:>8.2%}  {stage.verdict}"
        )


def print_diagnosis(diagnosis: "Diagnosis", *, with_model: bool, only_shapes: bool) -> None:
    """A few lines a cause."""
    from pg2ref.parity.bugs.collection import BUGS

    if diagnosis.is_clean and with_model and only_shapes:
        click.echo("diagnosis: no block makes an error in its numbers, only shapes differ: --map says how axes lie")
    elif diagnosis.is_clean and with_model:
        click.echo("diagnosis: no block makes an error beyond rounding; together they may, in a long run")
    if None in [cause.bug for cause in diagnosis.causes] + [None] * diagnosis.is_clean and not with_model:
        click.echo("diagnosis: from the two records alone; more can be told with -m MODEL")
    for cause in diagnosis.causes:
        where = f"{cause.stage}, error {cause.error:.2g}"
        if cause.bug is None:
            click.echo(f"diagnosis: unknown, at {where}: no known mistake gives these numbers")
            continue
        click.echo(f"diagnosis: {cause.bug}, at {where}, and {cause.left:.1g} with it injected")
        click.echo(f"  {BUGS[cause.bug].summary}")
        for link in BUGS[cause.bug].links:
            click.echo(f"  {link}")
        if cause.rivals:
            click.echo(f"  or {' or '.join(cause.rivals)}: this record cannot tell them apart")


def summary(comparison: "Comparison") -> Iterator[str]:
    """Lines of text."""
    close = sum(stage.is_good for stage in comparison.stages)
    yield f"{close} of {len(comparison.stages)} stages are close"
    ratios = [stage.noise_ratio for stage in comparison.stages if stage.noise_ratio is not None]
    if ratios:
        yield f"noise ratio: median {sorted(ratios)[len(ratios) // 2]:.2f}, largest {max(ratios):.2f}"
    else:
        yield "REFERENCE has no noise floor, so a fixed error is allowed: record it with --with-floor"
    if comparison.runs_apart:
        yield comparison.runs_apart
    if comparison.missing:
        yield f"not in OTHER: {len(comparison.missing)} stages, {', '.join(comparison.missing[:3])} among them"
    if comparison.extra:
        yield f"not in REFERENCE: {len(comparison.extra)} stages, {', '.join(comparison.extra[:3])} among them"
    if first := comparison.first_divergence:
        yield f"first divergence: {first.stage}, {how_it_diverges(first)}"
    if made := next((stage for stage in comparison.isolated if not stage.is_good), None):
        yield f"first error made, not passed on: {made.stage}"
    elif comparison.isolated:
        yield "no block makes an error of its own"


def how_it_diverges(stage: "StageComparison") -> str:
    """Why a stage is not close."""
    if stage.nrmse is None:
        batch = stage.other_shape == (1, *stage.shape)
        hint = ": leave out the batch axis, or let --map drop it" if batch else ""
        return f"shape {list(stage.other_shape)}, expected {list(stage.shape)}{hint}"
    if stage.stage == "input/ids":
        return f"other tokens, at position {stage.worst and stage.worst[0]} among others"
    if stage.verdict == "not finite":
        return "NaN or infinity"
    return f"error {stage.nrmse:.3g}, allowed {stage.limit:.3g}"
