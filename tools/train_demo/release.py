"""Puts trained weights into the package, with everything that is said of them and checked about them: one command.

    pip install --no-deps scikit-image scikit-learn foolbox          # for their photographs
    python tools/train_demo/release.py build/demo --processes 2

Exports the run in FOLDER, makes the statistics by which pg2ref tells scenes from photographs, asks about the held-out
scenes, measures the warnings, and only then replaces pg2ref/demo/checkpoint, results.json, the model card, README's
table and picture, and the golden record. Then run the tests, and `kept_state.py keep FOLDER` for the weights to go on
from.
"""

import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from evaluate import evaluate
from export_model import export_run
from guard_rates import guard_rates
from model_card import ROOT, write
from photographs import photographs
from results import Results, write_results
from scene_statistics import scene_statistics
from seeds import HELD_OUT
from table import table

from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.checkpoint.tensor_table import expected_shapes
from pg2ref.demo import builtin
from pg2ref.demo.familiarity import write_familiarity

MOST_BYTES = 12_000_000
FOLLOWING = ("make_builtin_golden.py", "make_readme_picture.py")  # what is made of the new package


def replace_package_folder(folder: Path) -> None:
    """Put the files of a folder in the place of the package's."""
    shutil.rmtree(builtin.FOLDER, ignore_errors=True)
    shutil.copytree(folder, builtin.FOLDER)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--scenes", default=len(HELD_OUT), show_default=True, help="Held-out scenes to ask about.")
@click.option("--processes", default=1, show_default=True, help="That ask at the same time.")
def main(folder: Path, scenes: int, processes: int) -> None:
    """Make, measure, replace."""
    next(photographs())  # their absence is told now, not in an hour
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / builtin.NAME
        step = export_run(folder, made)
        write_familiarity(scene_statistics(made), made)
        size = sum(path.stat().st_size for path in made.iterdir())
        if size > MOST_BYTES:
            raise click.ClickException(f"{size:,} bytes, at most {MOST_BYTES:,} may lie in the package")
        rows = evaluate(made, scenes, processes)
        click.echo(table(rows, scenes))
        shapes = expected_shapes(load_checkpoint(made).config)
        parameters = sum(math.prod(shape) for shape in shapes.values())
        results = Results(step, parameters, scenes, rows, guard_rates(made, scenes))
        replace_package_folder(made)
    write_results(results)
    write(results)
    for tool in FOLLOWING:
        subprocess.run([sys.executable, str(ROOT / "tools" / tool)], check=True)


if __name__ == "__main__":
    main()
