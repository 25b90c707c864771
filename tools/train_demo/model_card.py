"""Writes what is said of the built-in model: its card, and its lines in README.md, with numbers from results.json.

python tools/train_demo/model_card.py
"""

import re
from pathlib import Path

import click
from guard_rates import SCENES, of_photographs
from results import Results, read_results
from table import BARS, table

from pg2ref.demo import builtin

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
MARKS = "<!-- shapes:begin -->", "<!-- shapes:end -->"

CARD = """---
license: apache-2.0
language: [en, de, fr, es]
pipeline_tag: image-text-to-text
---
# pg2ref-shapes

The model inside pg2ref: the architecture of PaliGemma 2 in {parameters} million parameters, trained from scratch on
synthetic scenes. It is not PaliGemma: nothing of Google's weights, tokenizer or mask decoder is in it. It is there to
try pg2ref with, to test it, and to read beside the code.

It knows scenes as `pg2ref scene` draws them: one to four of 8 shapes in 8 colours, sometimes a short word or number,
on a plain, gradient or noisy ground. It answers `caption en` (de, fr, es), `answer en how many ...?`, `answer en what
colour is the ...?`, `answer en what shape is the ... object?`, `ocr`, `detect ...` and `segment ...`. Of anything else,
photographs above all, it says something all the same, and it is wrong.

## How good it is

Scenes that nothing was trained on, answered by pg2ref in float32 (`tools/train_demo/evaluate.py`). A caption is right
where every object is. The bars are what it was made to reach.

{table}

## When it warns

pg2ref compares the mean of an image's embeddings with the training scenes (`familiarity.npz`) and warns where it is far
from them. Measured by `tools/train_demo/guard_rates.py`; photographs are those that Python packages carry, whole and,
where they are large, in parts:

{guard}

## How it was made

`tools/train_demo/README.md` tells it, with seeds, log and the weights to go on from; these are those of step {step} of
its last stage. The scenes, the SentencePiece vocabulary and the VQ-VAE of the masks are pg2ref's own, the letters in
the scenes those of DejaVu Sans Bold. Transformers loads this folder, and answers alike
(`tests/test_builtin_parity.py`).

Apache-2.0.
"""


def percent(warned: int, count: int) -> str:
    """A share, with what it is a share of."""
    return f"{warned / count:.1%} of {count:,}"


def guard_table(results: Results) -> str:
    """How many of each kind are warned about."""
    rows = {"photographs": of_photographs(results.guard), **results.guard}
    lines = [f"| {kind} | {percent(*row)} |" for kind, row in rows.items()]
    return "\n".join(["| pictures | warned about |", "|---|---|", *lines])


def card(results: Results) -> str:
    """The whole of README.md in the checkpoint's folder."""
    return CARD.format(
        parameters=f"{results.parameters / 1e6:.1f}",
        table=table(results.rows, results.scenes),
        guard=guard_table(results),
        step=f"{results.step:,}",
    )


def summary(results: Results) -> str:
    """What README.md says of it."""
    reached = sum(name in results.rows and results.rows[name][0] >= bar for name, bar in BARS.items())
    scenes, photographs = percent(*results.guard[SCENES]), percent(*of_photographs(results.guard))
    warned = f"It warns about {photographs} photographs, and about {scenes} scenes."
    return f"{table(results.rows, results.scenes)}\n\n{reached} of {len(BARS)} bars are reached. {warned}"


def with_summary(readme: str, results: Results) -> str:
    """README.md with the summary between its marks."""
    begin, end = MARKS
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{summary(results)}\n{end}", readme)


def write(results: Results) -> None:
    """Both."""
    (builtin.FOLDER / "README.md").write_text(card(results), encoding="utf-8")
    README.write_text(with_summary(README.read_text(encoding="utf-8"), results), encoding="utf-8")


@click.command(help=__doc__)
def main() -> None:
    """Write what results.json says."""
    write(read_results())


if __name__ == "__main__":
    main()
