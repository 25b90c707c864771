"""Writes the tables of pg2ref/parity/README.md: the bugs of the museum, and what the diagnosis makes of each.

    python tools/confusion_table.py

Each bug is injected into pg2ref itself, recorded in three ways, and patched into Transformers (broken_transformers.py)
in float32 and bf16; what the diagnosis names stands in the table. Needs the `parity` extra.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import broken_transformers
import click
import numpy as np
import torch
import transformers
import transformers_stages
from tool_help import help_of

ROOT = Path(__file__).parent.parent
README = ROOT / "pg2ref" / "parity" / "README.md"
sys.path.insert(0, str(ROOT / "tests"))

import golden_records  # noqa: E402 - lies beside the tests
import museum  # noqa: E402

from pg2ref.parity.bugs.collection import BUGS  # noqa: E402
from pg2ref.parity.bugs.run import Run  # noqa: E402
from pg2ref.parity.diagnose import diagnose  # noqa: E402

POINTS: dict[str, Callable[[str], bool]] = {
    "pg2ref, every stage": lambda stage: True,
    "ends of blocks": lambda stage: stage.endswith(museum.BLOCK_ENDS),
    "logits alone": lambda stage: stage == "logits",
}
PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}


def named(truth: Run, stages: dict[str, np.ndarray], points: Callable[[str], bool], precision: str = "f32") -> str:
    """What the diagnosis says, a tie with all its names."""
    found = diagnose(truth, museum.record_of(stages, points), precision=precision)
    names = [" or ".join([cause.bug or "unknown", *cause.rivals]) for cause in found.causes]
    return ", ".join(dict.fromkeys(names)) or "clean"


def outcomes(truth: Run, inject: Callable[[Run], Run], bug: str | None) -> Iterator[str]:
    """A cell for each column; errors of another kind are not patched into Transformers."""
    stages = museum.stages_of(inject(museum.make_run(np.float32)))
    yield from (named(truth, stages, points) for points in POINTS.values())
    yield ", ".join(dict.fromkeys(museum.without_weights(truth, inject(museum.make_run(np.float32))))) or "clean"
    for precision, dtype in PRECISIONS.items():
        if bug is None:
            yield ""
            continue
        given = broken_transformers.Given(truth.pixel_values[0], truth.pictures[0], truth.prompt_ids, truth.answer_ids)
        model = transformers_stages.load_model(golden_records.GOLDEN / "base", dtype)
        yield named(truth, broken_transformers.record(model, given, bug), POINTS["pg2ref, every stage"], precision)


def confusion_table() -> Iterator[str]:
    """Markdown; a cell that names the injected bug and nothing else is a tick."""
    truth = museum.make_run()
    columns = [
        *POINTS,
        "without weights",
        *(f"Transformers {transformers.__version__} {precision}" for precision in PRECISIONS),
    ]
    yield f"| injected | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    right = [0] * len(columns)
    for name, bug in BUGS.items():
        cells = list(outcomes(truth, bug.inject, name))
        right = [count + (cell == name) for count, cell in zip(right, cells, strict=True)]
        yield f"| {name} | {' | '.join('✓' if cell == name else cell for cell in cells)} |"
    yield f"| **named rightly, of {len(BUGS)}** | {' | '.join(f'**{count}**' for count in right)} |"
    for name, inject in museum.OTHER_ERRORS.items():
        yield f"| *{name}* | {' | '.join(outcomes(truth, inject, None))} |"


def museum_table() -> Iterator[str]:
    """Markdown: what each bug is, and where it happened."""
    yield "| bug | what it is | where it happened |"
    yield "|---|---|---|"
    for bug in BUGS.values():
        places = [
            f"[{place}]({link})" if link != place else place for place, link in zip(bug.seen, bug.links, strict=True)
        ]
        yield f"| `{bug.name}` | {bug.summary} | {', '.join(places) or 'no public thread found'} |"


def put(text: str, name: str, lines: Iterator[str]) -> str:
    """The text with the lines between a pair of marks."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    assert begin in text
    assert end in text
    pattern = f"(?s)(?<={re.escape(begin)}).*?(?={re.escape(end)})"
    return re.sub(pattern, lambda _: "\n".join(lines) + "\n", text)


@click.command(help=help_of(__doc__))
def main() -> None:
    """Compute, then write."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    text = README.read_text(encoding="utf-8")
    text = put(put(text, "museum", museum_table()), "confusion", confusion_table())
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
