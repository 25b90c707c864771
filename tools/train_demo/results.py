"""What was measured of the weights that lie in the package, for those who write about it: results.json."""

import json
from pathlib import Path
from typing import Any, NamedTuple

PATH = Path(__file__).parent / "results.json"


class Results(NamedTuple):
    """Of one set of weights."""

    step: int  # of the joint stage
    parameters: int
    scenes: int  # held-out scenes that were asked about
    rows: dict[str, tuple[float, int]]  # of the table: a value, and how many answers or objects it is a mean of
    guard: dict[str, tuple[int, int]]  # kind of picture -> warned about, of


def read_results(path: Path = PATH) -> Results:
    """Those of the weights in the package."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    pairs = {name: {key: tuple(pair) for key, pair in stored[name].items()} for name in ("rows", "guard")}
    return Results(**(stored | pairs))


def write_results(results: Results, path: Path = PATH) -> None:
    """Put them in the place of the old."""
    path.write_text(json.dumps(results._asdict(), indent=1) + "\n", encoding="utf-8")
