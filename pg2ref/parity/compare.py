"""Two records of one computation, stage by stage: how far apart they are, and whether rounding explains it.

The yardstick is the noise floor that lies in the reference (noise_floor.py): the error that arithmetic of OTHER's
precision has at that stage anyway. Errors grow from layer to layer, and so does the floor, so one factor serves all
stages. What is named first is the first stage in the order of computation that diverges, not the worst.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.errors import InputError, UsageError
from pg2ref.parity.difference import FRACTION_BITS, Difference, measure, share_beyond
from pg2ref.parity.records import Record, Stage
from pg2ref.parity.runs_apart import runs_apart
from pg2ref.parity.summary import measure_summaries, samples_of, summarize, with_same_samples
from pg2ref.parity.trace_file import IDS

Verdict = Literal["equal", "close", "diverges", "shape", "not finite"]
LAST_ROWS = ("text/final_norm", "logits_before_cap", "logits")  # often recorded of the last rows alone
OUTLIER = 6.0  # times the rms of the noise: what noise alone hardly ever reaches


class Tolerance(NamedTuple):
    """What error is put down to rounding, as NRMSE."""

    factor: float  # times the noise floor
    least: float  # no floor is below this: half a unit in the last place, which storing a number may cost
    assumed: float  # where the reference has no floor


# Transformers 5.23 on small random models: at most 3.9 times the floor in float32, 1.2 in bf16; on random weights of
# 3b-224 1.3 and 1.1. Sums of a float32 port may be longer than those that the floor was computed with.
TOLERANCES: Mapping[str, Tolerance] = {
    "f32": Tolerance(factor=8, least=2.0**-24, assumed=1e-4),
    "bf16": Tolerance(factor=2, least=2.0**-9, assumed=5e-2),
}


@dataclass(frozen=True)
class StageComparison:
    """One stage of both records. Numbers are None where the shapes do not allow any; difference.py defines them."""

    stage: str
    shape: tuple[int, ...]  # of the reference
    other_shape: tuple[int, ...]
    verdict: Verdict
    limit: float  # the NRMSE that rounding explains
    floor: float | None = None  # NRMSE of the noise, if the reference has it
    nrmse: float | None = None
    noise_ratio: float | None = None  # nrmse / floor
    max_abs: float | None = None
    worst: tuple[int, ...] | None = None  # index of the largest error
    cosine: float | None = None
    scale: float | None = None
    bias: float | None = None
    ulp: float | None = None
    outliers: float | None = None  # share of values with an error above OUTLIER times the noise's rms
    is_sampled: bool = False  # one of both is a summary (summary.py)

    @property
    def is_good(self) -> bool:
        """Whether rounding explains the difference."""
        return self.verdict in ("equal", "close")


@dataclass(frozen=True)
class Comparison:
    """All stages that both records have, in the reference's order."""

    reference: str
    other: str
    precision: str  # OTHER's, whose noise is allowed for: a key of TOLERANCES
    stages: tuple[StageComparison, ...]
    missing: tuple[str, ...]  # stages of the reference that OTHER lacks
    extra: tuple[str, ...]  # of OTHER, that the reference lacks
    runs_apart: str | None = None  # how the runs differ in model, adapters or answer, where both say what they had
    isolated: tuple[StageComparison, ...] = ()  # isolate.py: each block of the reference fed with OTHER's own input

    @property
    def first_divergence(self) -> StageComparison | None:
        """The first stage that rounding does not explain."""
        return next((stage for stage in self.stages if not stage.is_good), None)

    @property
    def is_close(self) -> bool:
        """Whether rounding explains everything."""
        return self.first_divergence is None and all(block.is_good for block in self.isolated)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has neither infinity nor NaN: null there."""
        first = self.first_divergence
        whole = asdict(self) | {"is_close": self.is_close, "first_divergence": first.stage if first else None}
        for stage in (*whole["stages"], *whole["isolated"]):
            floats = {key: value for key, value in stage.items() if isinstance(value, float)}
            stage.update({key: None for key, value in floats.items() if not math.isfinite(value)})
        return whole


@np.errstate(over="ignore", invalid="ignore")  # OTHER's numbers may be beyond all bounds: the verdict says so
def compare(
    reference: Record,
    other: Record,
    *,
    precision: str | None = None,
    tolerance: float | None = None,
    required: str | None = None,
) -> Comparison:
    """Compare the stages that both have.

    Args:
        reference: best a float64 trace with its noise floor.
        other: what is to be judged.
        precision: `f32` or `bf16`: OTHER's arithmetic; by default what it says of itself, or how its numbers look.
        tolerance: the NRMSE to allow at each stage, instead of a multiple of the noise floor.
        required: a regular expression; stages of the reference in whose names it is found OTHER has to have.

    Raises:
        InputError: they have no stage in common.
        UsageError: there is no such precision, or none that could be told; or a tolerance below zero; or OTHER lacks
            a stage that is required.
    """
    if tolerance is not None and not tolerance >= 0:
        raise UsageError(f"tolerance {tolerance}: expected a relative error, 0 or more: give 0.01, say")
    check_required(reference, other, required)
    shared = [name for name in reference.stages if name in other.stages]
    if not any(name != IDS for name in shared):
        raise InputError(
            f"{other.name} has no stage that {reference.name} has: it has {_some(other)}, expected such as "
            f"{_some(reference)}: give --map, or record more points"
        )
    if precision is None:
        precision = precision_of(other) if tolerance is None else "f32"
    if precision not in TOLERANCES:
        raise UsageError(
            f"precision {precision!r} of {other.name} has no noise floor: give --tolerance, the relative error to allow"
        )
    return Comparison(
        reference=reference.name,
        other=other.name,
        precision=precision,
        stages=tuple(
            compare_stage(name, reference.stages[name], other.stages[name], precision, tolerance) for name in shared
        ),
        missing=tuple(name for name in reference.stages if name not in other.stages),
        extra=tuple(name for name in other.stages if name not in reference.stages),
        runs_apart=runs_apart(reference, other),
    )


def check_required(reference: Record, other: Record, required: str | None) -> None:
    """Refuse a record that lacks what has to be there: of a stage that nobody looks at nobody can say it is right."""
    if required is None:
        return
    try:
        wanted = [name for name in reference.stages if re.search(required, name)]
    except re.error as error:
        raise UsageError(f"required {required!r}: expected a regular expression ({error})") from None
    if not wanted:
        raise UsageError(
            f"required {required!r}: {reference.name} has no such stage, expected such as {_some(reference)}"
        )
    if lacking := [name for name in wanted if name not in other.stages]:
        raise UsageError(
            f"{other.name} lacks {len(lacking)} of {len(wanted)} required stages, {', '.join(lacking[:3])} among them: "
            "record them, under these names"
        )


def compare_stage(
    name: str, reference: Stage, other: Stage, precision: str, tolerance: float | None = None
) -> StageComparison:
    """One stage; where OTHER has more rows of LAST_ROWS than the reference, the last ones are compared."""
    allowed = TOLERANCES[precision]
    floor = reference.floors.get(precision)
    yardstick = None if floor is None else max(floor, allowed.least)
    limit = allowed.assumed if yardstick is None else allowed.factor * yardstick
    if name == IDS:
        limit = 0.0
    elif tolerance is not None:
        limit = tolerance
    about: dict[str, Any] = {"stage": name, "shape": reference.shape, "other_shape": other.shape}
    about |= {"limit": limit, "floor": yardstick}
    if not fits(name, reference, other):
        return StageComparison(**about, verdict="shape")
    if not _size(reference.shape):
        return StageComparison(**about, verdict="equal")
    coarser = min((reference.type, other.type, precision), key=lambda kind: FRACTION_BITS.get(kind, 99))
    difference, exact, found = measure_stage(reference, other, coarser)
    noise = (yardstick if yardstick is not None else limit) * difference.rms
    return StageComparison(
        **about,
        verdict=judge(difference, limit),
        nrmse=difference.nrmse,
        noise_ratio=None if yardstick is None else difference.nrmse / yardstick,
        max_abs=difference.max_abs,
        worst=tuple(int(i) for i in np.unravel_index(difference.worst, reference.shape)),
        cosine=difference.cosine,
        scale=difference.scale,
        bias=difference.bias,
        ulp=difference.ulp,
        outliers=share_beyond(exact, found, OUTLIER * noise),
        is_sampled=reference.summary is not None or other.summary is not None,
    )


def measure_stage(reference: Stage, other: Stage, coarser_type: str) -> tuple[Difference, Array, Array]:
    """The difference, and the values of both that it was taken from: samples where one of both is a summary."""
    if reference.summary is None and other.summary is None:
        exact, found = reference.read(), last_rows(other.read(), reference.shape)
        return measure(exact, found, coarser_type=coarser_type), exact, found
    exactly = reference.summary or summarize(reference.read())
    found_so = other.summary or summarize(last_rows(other.read(), reference.shape))
    exactly, found_so = with_same_samples(exactly, found_so, _size(reference.shape))
    difference = measure_summaries(exactly, found_so, _size(reference.shape), coarser_type=coarser_type)
    return difference, exactly.samples, found_so.samples


def judge(difference: Difference, limit: float) -> Verdict:
    """The verdict on arrays of one size."""
    if difference.not_finite:
        return "not finite"
    if difference.max_abs == 0.0 and difference.nrmse == 0.0:
        return "equal"
    return "close" if difference.nrmse <= limit else "diverges"


def fits(name: str, reference: Stage, other: Stage) -> bool:
    """Whether the arrays hold the same places: equal but for heads side by side in one axis, or more rows."""
    if not reference.shape or not other.shape:
        return reference.shape == other.shape
    if name.endswith(LAST_ROWS) and other.summary is None and other.shape[0] > reference.shape[0]:
        return reference.shape[1:] == other.shape[1:]
    return reference.shape[0] == other.shape[0] and _size(reference.shape) == _size(other.shape)


def last_rows(array: Array, shape: tuple[int, ...]) -> Array:
    """The last of the rows, as many as the shape has."""
    return array[len(array) - shape[0] :] if shape else array


def precision_of(record: Record) -> str:
    """The precision that a record's numbers were computed in, by what it says, or by what they look like."""
    if said := record.facts.get("precision"):
        return "f32" if said == "f64" else said
    floats = [stage for name, stage in record.stages.items() if stage.type in FRACTION_BITS and "pixel" not in name]
    if any(stage.type == "f16" for stage in floats):
        raise UsageError(
            f"{record.name} holds float16, for whose noise there is no floor: give --precision bf16, which allows more "
            "than float16 needs, or --tolerance"
        )
    if any(stage.type == "bf16" for stage in floats):
        return "bf16"
    looked_at = [samples_of(stage.read()) for stage in floats if stage.summary is None]
    is_bf16 = looked_at and all((samples.view(np.uint32) & 0xFFFF == 0).all() for samples in looked_at)
    return "bf16" if is_bf16 else "f32"


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _some(record: Record) -> str:
    return ", ".join([name for name in record.stages if name != IDS][:3]) or "nothing"
