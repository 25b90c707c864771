"""How often pg2ref warns about photographs, and about scenes that nothing was trained on.

python tools/train_demo/guard_rates.py out/pg2ref-shapes         # needs what photographs.py names
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import click
from photographs import photographs
from scene_examples import example
from scene_statistics import pooled
from seeds import HELD_OUT

import pg2ref
from pg2ref.arrays import Array
from pg2ref.demo.familiarity import read_familiarity
from pg2ref.inputs.image import pixel_values

SCENES = "held-out scenes"
BARS = "at least 95 % of photographs, at most 5 % of scenes"


def guard_rates(folder: Path, scenes: int) -> dict[str, tuple[int, int]]:
    """How many are warned about, and of how many, for each kind of picture."""
    model, familiarity = pg2ref.load(folder, backend="numpy"), read_familiarity(folder)
    side = model.config.vision.image_size

    def warned(pictures: Iterable[Array]) -> tuple[int, int]:
        distances = [familiarity.distance(one_D[None]) for one_D in pooled(model, pictures)]
        return sum(distance > 1 for distance in distances), len(distances)

    kinds: dict[str, list[Array]] = defaultdict(list)
    for photograph in photographs():
        kinds[photograph.kind].append(pixel_values(photograph.picture, side))
    rates = {SCENES: warned(example(seed, side).pixel_values_CYX for seed in HELD_OUT[:scenes])}
    return rates | {kind: warned(pictures) for kind, pictures in kinds.items()}


def of_photographs(rates: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """The sum of all but the scenes."""
    warned, count = (sum(column) for column in zip(*(rates[kind] for kind in rates if kind != SCENES), strict=True))
    return warned, count


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--limit", default=len(HELD_OUT), show_default=True, help="How many scenes.")
def main(folder: Path, limit: int) -> None:
    """Measure and print."""
    rates = guard_rates(folder, limit)
    for kind, (warned, count) in (rates | {"photographs": of_photographs(rates)}).items():
        click.echo(f"{kind:<20} {warned:>5} of {count:>5}  {warned / count:.1%}")
    click.echo(f"wanted: {BARS}")


if __name__ == "__main__":
    main()
