"""Compares pg2ref with Transformers on one checkpoint, image and prompt, stage by stage; a float64 run is the judge.

    python tools/parity_table.py /data/random-3b-224 photo.jpg -p "caption en" -n 32

For each kind of stage, the worst layer: how far pg2ref float32 and Transformers float32 are from pg2ref float64, as
the relative error ||a - truth|| / ||truth|| and as the largest absolute error; then the greedy ids of both.
Needs the `parity` extra, and memory for the model in float32.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import transformers_stages
from tool_help import help_of

import pg2ref
from pg2ref.arrays import Array
from pg2ref.parity.difference import measure


class Row(NamedTuple):
    """One stage: errors against float64."""

    stage: str
    ours_relative: float
    theirs_relative: float
    ours_max: float
    theirs_max: float
    between_max: float
    scale: float  # the largest number of the stage


def compare(truth: Mapping[str, Array], ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> list[Row]:
    """A row for each stage, in the order of computation."""
    rows = []
    for stage, exact in truth.items():
        rows_of_theirs = theirs[stage][-len(exact) :] if stage.startswith("logits") else theirs[stage]
        a, b = measure(exact, ours[stage]), measure(exact, rows_of_theirs)
        between = measure(ours[stage], rows_of_theirs)
        largest = float(np.abs(exact).max())
        rows.append(Row(stage, a.nrmse, b.nrmse, a.max_abs, b.max_abs, between.max_abs, largest))
    return rows


def worst_of_each_kind(rows: list[Row]) -> list[Row]:
    """Layers of one kind of stage folded into the one where pg2ref's relative error is largest."""
    kinds: dict[str, Row] = {}
    for row in rows:
        kind = re.sub(r"layer_\d+", "layer", row.stage)
        if kind not in kinds or row.ours_relative > kinds[kind].ours_relative:
            kinds[kind] = row
    return list(kinds.values())


def print_table(rows: list[Row]) -> None:
    """Markdown."""
    click.echo(
        "| stage | largest value | pg2ref rel | Transformers rel | pg2ref max | Transformers max | between, max |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = [row.ours_relative, row.theirs_relative, row.ours_max, row.theirs_max, row.between_max]
        click.echo(f"| {row.stage} | {row.scale:.3g} | " + " | ".join(f"{number:.2e}" for number in numbers) + " |")


def print_closer(rows: list[Row]) -> None:
    """At how many stages pg2ref is at least as close to float64, and where it is not."""
    closer = sum(row.ours_relative <= row.theirs_relative for row in rows)
    click.echo(f"\npg2ref is at least as close to float64 at {closer} of {len(rows)} stages (relative error)")
    for row in rows:
        if row.ours_relative > row.theirs_relative:
            click.echo(f"  not at {row.stage}: {row.ours_relative:.3e} against {row.theirs_relative:.3e}")


@click.command(help=help_of(__doc__))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-p", "--prompt", default="caption en", show_default=True)
@click.option("-n", "--max-new-tokens", default=32, show_default=True)
@click.option("--weights/--no-weights", default=True, show_default=True, help="Compare attention weights too.")
@click.option("--every-layer", is_flag=True, help="Print every stage, not the worst layer of each kind.")
def main(folder: Path, image: Path, prompt: str, max_new_tokens: int, weights: bool, every_layer: bool) -> None:
    """Record all three, print the table, compare the ids."""

    def points(stage: str) -> bool:
        return weights or not stage.endswith("attention_weights")

    model = pg2ref.load(folder)
    prepared = model.prepare(image, prompt)
    pixel_values, ids = np.stack(prepared.pixel_values), prepared.prompt_ids
    reference = transformers_stages.load_model(folder)
    theirs = transformers_stages.record(reference, pixel_values, ids, len(ids), points)
    their_ids = transformers_stages.generate(reference, pixel_values, ids, max_new_tokens)
    del reference
    ours = model.trace(image, prompt, points=points).stages
    truth = pg2ref.load(folder, precision="f64").trace(image, prompt, points=points).stages
    rows = compare(truth, ours, theirs)
    print_table(rows if every_layer else worst_of_each_kind(rows))
    print_closer(rows)
    our_ids = list(model.generate(image, prompt, max_new_tokens=max_new_tokens).token_ids)
    click.echo(f"greedy ids equal: {our_ids == their_ids}\n  pg2ref       {our_ids}\n  Transformers {their_ids}")


if __name__ == "__main__":
    main()
