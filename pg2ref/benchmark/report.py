"""What a benchmark found: every repetition, medians, shares of the limits, and the JSON form `pg2ref/bench/1`.

Fields are only ever added within a version of the schema.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pg2ref.benchmark.work import Work
from pg2ref.outputs.result import versions

SCHEMA = "pg2ref/bench/1"
UNITS = {"read": "GB/s", "mapped": "GB/s", "f32": "GFLOP/s", "bf16": "GFLOP/s", "int8": "GOP/s"}


@dataclass(frozen=True)
class Limit:
    """What the machine can do: bytes read from memory, or operations of one kind, a second.

    `read` is of anonymous memory, in the largest pages there are; `mapped` of the largest weight where it lies in the
    mapped file, from where the kernels read it too.
    """

    name: str  # read, mapped, f32, bf16, int8
    rates: tuple[float, ...]  # of each measurement
    is_emulated: bool  # the processor lacks the instruction: others stand in for it

    @property
    def rate(self) -> float:
        """The median."""
        return median(self.rates)

    @property
    def unit(self) -> str:
        """Of `rate` / 1e9."""
        return UNITS[self.name]

    def to_dict(self) -> dict[str, Any]:
        """Rates in `unit`."""
        runs = [rate / 1e9 for rate in self.rates]
        return {"unit": self.unit, "median": self.rate / 1e9, "runs": runs, "emulated": self.is_emulated}


@dataclass(frozen=True)
class Measure:
    """One part of the model: how long it took, and how long the machine would take at its limit."""

    name: str  # vision, prefill, decode
    work: Work  # of one pass
    seconds: tuple[float, ...]  # of one pass, each repetition
    limit_seconds: tuple[float, ...]  # the same work at the limits, as measured beside each repetition

    @property
    def median_seconds(self) -> float:
        """Of one pass."""
        return median(self.seconds)

    @property
    def is_reading(self) -> bool:
        """Whether reading memory is what limits it, and not arithmetic."""
        return self.name == "decode"

    @property
    def limited_by(self) -> str:
        """The limit's name; several where a quantised model has matrices of several types."""
        return "read" if self.is_reading else "+".join(sorted(self.work.operations))

    @property
    def rate(self) -> float:
        """Bytes or operations a second."""
        amount = self.work.bytes_read if self.is_reading else sum(self.work.operations.values())
        return amount / self.median_seconds

    @property
    def unit(self) -> str:
        """Of `rate` / 1e9."""
        return "GB/s" if self.is_reading else "GOP/s" if "int8" in self.work.operations else "GFLOP/s"

    @property
    def share(self) -> float:
        """Of the limit, 1 at most but for noise: the median of the repetitions' shares."""
        return median(limit / taken for limit, taken in zip(self.limit_seconds, self.seconds, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Milliseconds, the rate in `unit`, and what they were computed from."""
        return {
            "median_ms": 1e3 * self.median_seconds,
            "runs_ms": [1e3 * seconds for seconds in self.seconds],
            "limit_ms": [1e3 * seconds for seconds in self.limit_seconds],
            "limited_by": self.limited_by,
            "unit": self.unit,
            "rate": self.rate / 1e9,
            "share": self.share,
            "operations": dict(self.work.operations),
            "bytes": self.work.bytes_read,
        }


@dataclass(frozen=True)
class Report:
    """Everything about one run. `model` and `input` are None where the machine alone was measured."""

    threads: int
    path: str  # of the kernels through the processor's instructions (kernels/simd/cpu.py)
    repeat: int
    limits: tuple[Limit, ...]
    model: Mapping[str, Any] | None = None
    input: Mapping[str, Any] | None = None
    measures: tuple[Measure, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object as Python values."""
        return {
            "schema": SCHEMA,
            "machine": {"cpu": cpu_name(), "path": self.path, "threads": self.threads},
            "repeat": self.repeat,
            "limits": {limit.name: limit.to_dict() for limit in self.limits},
            "model": self.model,
            "input": self.input,
            "measures": {measure.name: measure.to_dict() for measure in self.measures},
            "versions": versions(),
        }

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())

    def heading(self) -> str:
        """The machine in a line."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{cpu_name()}, {self.path}, {threads}, median of {self.repeat}"

    def model_heading(self) -> str:
        """The model and what it was given, in a line; empty without a model."""
        if self.model is None or self.input is None:
            return ""
        tokens = f"{self.input['image_tokens']} image + {self.input['text_tokens']} text tokens"
        return f"{self.model['id']}: {self.model['weights']} weights, computed in {self.model['dtype']}, {tokens}"

    def to_table(self) -> str:
        """Lines for people."""
        lines = [self.heading()]
        for limit in self.limits:
            emulated = "  (emulated)" if limit.is_emulated else ""
            lines.append(f"  {limit.name:<8} {'':<17} {limit.rate / 1e9:8.1f} {limit.unit}{emulated}")
        if self.measures:
            lines += ["", self.model_heading()]
        for measure in self.measures:
            unit = "ms/token" if measure.name == "decode" else "ms"
            lines.append(
                f"  {measure.name:<8} {1e3 * measure.median_seconds:8.1f} {unit:<8} {measure.rate / 1e9:8.1f} "
                f"{measure.unit:<8} {measure.share:5.0%} of {measure.limited_by}"
            )
        return "\n".join(lines)


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
