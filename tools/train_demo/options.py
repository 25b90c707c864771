"""The command line that the three stages have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click


class Options(NamedTuple):
    """How to train; the defaults are each stage's own."""

    steps: int
    batch_size: int
    highest_rate: float
    muon_rate: float
    final_share: float
    scenes: int
    validation: int = 200
    log_every: int = 250
    seed: int = 0
    stop_after: int | None = None

    @property
    def last_step(self) -> int:
        """Where this run ends."""
        return min(self.steps, self.stop_after or self.steps)


HELP = {
    "steps": "Of the whole schedule: at its end the rate is 0.",
    "batch_size": "Scenes in a batch of each process.",
    "highest_rate": "Of AdamW.",
    "muon_rate": "Of Muon; 0 trains everything with AdamW.",
    "final_share": "Of the steps, over which the rate falls.",
    "scenes": "How many before they are read again.",
    "validation": "Scenes to measure on.",
    "log_every": "In steps.",
    "seed": "Of the fresh weights.",
    "stop_after": "Stop at this step, to go on later.",
}


def training_options(defaults: Options) -> Callable[[Callable[[Path, Options], None]], click.Command]:
    """A command with a FOLDER and an option for each field; it goes on where it stopped."""

    def command(train: Callable[[Path, Options], None]) -> click.Command:
        def run(folder: Path, **given: Any) -> None:
            train(folder, Options(**given))

        folder = click.Argument(["folder"], type=click.Path(file_okay=False, path_type=Path))
        options = [
            click.Option(
                [f"--{name.replace('_', '-')}"],
                default=default,
                type=int if default is None else type(default),
                show_default=default is not None,
                help=HELP[name],
            )
            for name, default in defaults._asdict().items()
        ]
        return click.Command(train.__name__, callback=run, params=[folder, *options], help=train.__doc__)

    return command
