"""Rows of tools/bench_peers.py: two sides and their ratio, judged by bars, as a table for people and for the README."""

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

BEGIN, END = "<!-- bench:begin {} -->", "<!-- bench:end {} -->"  # a table for each path of the kernels


class Side(NamedTuple):
    """What one side took, in each repetition."""

    name: str
    runs: Sequence[float]
    unit: str  # ms, ms/token, MB, %

    @property
    def median(self) -> float:
        """Of the repetitions."""
        return median(self.runs)

    def text(self) -> str:
        """The median with its unit."""
        number = f"{self.median:,.0f}" if self.median >= 100 else f"{self.median:.1f}"
        return f"{number} {self.unit}"


class Row(NamedTuple):
    """One measure; `peer` is None where pg2ref is judged by itself."""

    measure: str
    own: Side
    peer: Side | None = None
    note: str = ""

    @property
    def value(self) -> float:
        """What a bar judges: the ratio of the medians, below 1 where pg2ref is faster, or the number itself."""
        return self.own.median / self.peer.median if self.peer else self.own.median

    def to_dict(self, bars: Mapping[str, "Bar"]) -> dict[str, Any]:
        """For the JSON file."""
        sides = {
            name: side and {"name": side.name, "median": side.median, "runs": list(side.runs), "unit": side.unit}
            for name, side in (("own", self.own), ("peer", self.peer))
        }
        bar = bars.get(self.measure)
        verdict = {"bar": bar.text(), "met": bar.is_met(self)} if bar else {}
        return {"measure": self.measure, **sides, "value": self.value, "note": self.note, **verdict}


class Bar(NamedTuple):
    """What is to be reached: at most, or at least, `value`."""

    value: float
    is_least: bool = False

    def is_met(self, row: Row) -> bool:
        """Whether a row reaches it."""
        return row.value >= self.value if self.is_least else row.value <= self.value

    def text(self) -> str:
        """With its sign."""
        return f"{'>=' if self.is_least else '<='} {self.value:g}"


BARS: Mapping[str, Bar] = {
    "decode bf16": Bar(0.45),
    "decode share of read bandwidth": Bar(90, is_least=True),
    "prefill bf16": Bar(0.9),
    "prefill share of bf16 peak": Bar(80, is_least=True),
    "vision bf16": Bar(0.75),
    "vision + prefill at 448": Bar(0.6),
    "prefill f32": Bar(0.7),
    "decode int8": Bar(0.55),
    "decode int4": Bar(0.35),
    "prefill int8": Bar(0.6),
    "whole process": Bar(0.5),
    "anonymous memory": Bar(400),
}


def plain_table(rows: Iterable[Row], bars: Mapping[str, Bar]) -> str:
    """A line a row, both sides and the ratio; with bars, whether each is met."""
    lines = []
    for row in rows:
        peer = f"{row.peer.name:<50} {row.peer.text():>16}   ratio {row.value:.2f}" if row.peer else ""
        line = f"{row.measure:<32} {row.own.name:<12} {row.own.text():>16}   {peer}"
        if row.measure in bars:
            bar = bars[row.measure]
            line = f"{line:<140} {'ok' if bar.is_met(row) else 'missed'} ({bar.text()})"
        lines.append(f"{line}{'   ' + row.note if row.note else ''}".rstrip())
    return "\n".join(lines)


def markdown_table(rows: Iterable[Row], heading: str) -> str:
    """What stands in the README between the marks."""
    lines = [heading, "", "| measure | pg2ref | compared with | | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        theirs = f"{row.peer.name} | {row.peer.text()} | {row.value:.2f}" if row.peer else f"{row.note} | |"
        lines.append(f"| {row.measure} | {row.own.text()} | {theirs} |")
    return "\n".join(lines)


def replace_block(text: str, block: str, path: str) -> str:
    """The README's text with another block between the marks of a processor's path.

    Raises:
        ValueError: the marks do not stand there once each, in order.
    """
    begin, end = BEGIN.format(path), END.format(path)
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", flags=re.DOTALL)
    if text.count(begin) != 1 or text.count(end) != 1 or not pattern.search(text):
        raise ValueError(f"expected one {begin} and one {end} after it; put them where the table should stand")
    return pattern.sub(lambda _: f"{begin}\n{block}\n{end}", text)
