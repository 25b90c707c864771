"""Names the mistake behind a divergence, by trying each known one: which of them reproduces what OTHER computed?

The forward pass is cut into blocks (blocks.py), and each is run on the input that OTHER itself had there, so that an
error counts where it is made and not where it is felt. At the first block that differs by more than rounding, every
bug of the museum is injected in turn. One that reproduces OTHER's numbers to rounding is the cause: a near miss is
none, so a wrong constant or a damaged weight stays unknown. Bugs that cannot be told apart at one block are by the
next. Then the walk goes on with the named bug injected, which finds the second mistake behind the first.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pg2ref.arrays import Array, widen
from pg2ref.errors import Pg2RefError, UsageError
from pg2ref.parity.blocks import PREFIX, Block, blocks_of, last_rows_alone, run_blocks
from pg2ref.parity.bugs.collection import BUGS
from pg2ref.parity.bugs.run import Bug, Run
from pg2ref.parity.difference import measure
from pg2ref.parity.records import Record, step_of
from pg2ref.parity.trace_file import IDS

# What rounding does within one block on the same input, as NRMSE of the worst stage: of Transformers in small models at
# most 4e-7 in float32 and 9.3e-3 in bf16 (tests/test_broken_transformers.py). Longer sums round more, hence the room.
ROUNDING = {"f32": 1e-5, "bf16": 2.5e-2}
ONE_LEVEL = 1.2e-2  # of 255: a port that resizes as a bug does still rounds, truncates or keeps fractions as it likes
BETTER = 4.0  # times nearer to OTHER than the right model has a bug to be, so that rounding alone never decides
MOST_UNKNOWN = 3  # blocks that nothing explains: more of them say nothing new
LAST_ROWS = ("text/final_norm", "logits_before_cap", "logits")  # recorded of the last rows alone, mostly


@dataclass(frozen=True)
class Cause:
    """One divergence. `bug` is None where no bug of the museum reproduces it."""

    stage: str  # the first stage that differs, though its block had OTHER's own input
    error: float  # there, NRMSE
    bug: str | None
    left: float | None  # of the error, with the bug injected: of the block's worst stage
    rivals: tuple[str, ...]  # bugs that this record cannot tell from it


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with OTHER, in the order of computation; nothing where it is right up to rounding."""

    causes: tuple[Cause, ...]
    blocks_compared: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing differs by more than rounding."""
        return not self.causes

    @property
    def names(self) -> tuple[str, ...]:
        """The bugs, `unknown` among them."""
        return tuple(cause.bug or "unknown" for cause in self.causes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: null there."""
        whole = asdict(self)
        for cause in whole["causes"]:
            cause |= {key: None for key in ("error", "left") if cause[key] and not math.isfinite(cause[key])}
        return whole


def diagnose(
    run: Run, other: Record, *, precision: str = "f32", blocks: Callable[[Run], list[Block]] = blocks_of
) -> Diagnosis:
    """Compare a record with the right model, block by block, and name what explains each divergence.

    Args:
        run: the right model, best in float32 or float64 on the reference operations, and what OTHER was given.
        other: a record in full; the more stages it has, the sharper the diagnosis. Stages of decoding steps are taken
            for rows of the answer; of the run's `answer_ids` as many count as OTHER has read.
        precision: OTHER's, a key of ROUNDING.
        blocks: how the pass is cut: those of blocks.py, or of weightless.py.

    Raises:
        UsageError: OTHER holds summaries alone, or has no stage of the model's.
    """
    stages = joined_stages(other)
    in_steps = any(map(step_of, other.stages))
    run = run._replace(answer_ids=run.answer_ids[: answer_rows(run, other, stages)], in_steps=in_steps)
    segments = segments_of(blocks(run), stages)
    if not segments:
        raise UsageError(f"{other.name} holds no stage in full that can be diagnosed: record it with --mode full")
    walk = Walk(stages, ROUNDING[precision])
    causes: list[Cause] = []
    known: dict[str, Array] = {}
    for index, segment in enumerate(segments):
        errors = walk.errors(run, segment, known)
        if max(errors.values()) > walk.limit:
            cause, run = walk.explain(run, segments[index:], known, errors)
            causes.append(cause)
            cannot_go_on = math.isinf(errors[segment[-1].output]) and segment[-1].kind != "prompt"
            if cause.bug is None and (cannot_go_on or [cause.bug for cause in causes].count(None) == MOST_UNKNOWN):
                break
        known = walk.after(run, segment, known)
    return Diagnosis(tuple(causes), len(segments))


def joined_stages(other: Record) -> dict[str, Array]:
    """Stages that are there in full, rows of decoding steps behind those of the prompt, without attention weights.

    A single number is no stage: every one of them has rows. A folder and most files list names by the alphabet, so the
    order of steps is that of their numbers.
    """
    stages: dict[str, Array] = {}
    for name in sorted(other.stages, key=step_of):
        stage = other.stages[name]
        if stage.summary is not None or not stage.shape:
            continue
        if not step_of(name):
            stages[name] = stage.read()
            continue
        base = name.partition("/")[2]
        if base.endswith("attention_weights"):
            stages.pop(base, None)
        elif base in stages and stages[base].shape[1:] == stage.shape[1:]:
            stages[base] = np.concatenate([stages[base], stage.read()])
    return stages


def answer_rows(run: Run, other: Record, stages: Mapping[str, Array]) -> int:
    """How many tokens behind the prompt OTHER has read."""
    steps = set(map(step_of, other.stages)) - {0}
    if steps:
        return len(steps)
    if len(stages.get("logits", ())) == 1:  # the place behind the prompt
        return 0
    prompt_rows = len(stages[IDS]) if IDS in stages else len(run.prompt_ids)
    text = next((len(array) for name, array in stages.items() if name.startswith(("prefix/", "text/"))), None)
    return len(run.answer_ids) if text is None else max(text - prompt_rows, 0)


def segments_of(blocks: list[Block], stages: Mapping[str, Array]) -> list[list[Block]]:
    """Runs of blocks from one output that OTHER has to the next; what follows the last stage it has is left out."""
    segments: list[list[Block]] = [[]]
    for block in blocks:
        segments[-1].append(block)
        if block.output in stages:
            segments.append([])
    return [segment for segment in segments if segment and segment[-1].output in stages]


class Walk:
    """Runs segments of one record's computation on that record's own inputs."""

    def __init__(self, stages: Mapping[str, Array], limit: float) -> None:
        self.stages, self.limit = stages, limit
        self.shapes: dict[str, tuple[int, ...]] = {}  # of outputs, as the model has them

    def errors(self, run: Run, segment: Sequence[Block], known: Mapping[str, Array]) -> dict[str, float]:
        """How far each stage that OTHER has of the segment is from the run's, as NRMSE."""
        output = segment[-1].output
        if segment[0].kind == "logits":
            known = last_rows_alone(segment[0], known, len(self.stages[output]))
        ours = run_blocks(run, segment, known, lambda stage: stage in self.stages)  # attention weights are large
        self.shapes[output] = ours[output].shape
        return {stage: error(stage, ours[stage], self.stages[stage], run) for stage in ours if stage in self.stages}

    def after(self, run: Run, segment: Sequence[Block], known: Mapping[str, Array]) -> dict[str, Array]:
        """What later segments may read: OTHER's outputs, and the run's own where OTHER has none."""
        output = segment[-1].output
        given = self.stages[output]
        given = given if given.dtype.kind == "i" else widen(given, run.model.dtype)
        if given.size == math.prod(self.shapes[output]):
            given = given.reshape(self.shapes[output])
        if output == PREFIX and len(given) == len(run.prompt_ids):  # steps are recorded without their embeddings
            given = np.concatenate([given, run_blocks(run, segment, known)[PREFIX][len(given) :]])
        return {**known, output: given}

    def explain(
        self, run: Run, segments: Sequence[Sequence[Block]], known: Mapping[str, Array], errors: Mapping[str, float]
    ) -> tuple[Cause, Run]:
        """The cause of the first segment's errors, and the run with it injected."""
        stage, size = next((stage, size) for stage, size in errors.items() if size > self.limit)
        left = dict(self.explaining(run, segments[0], known, errors))
        names = self.narrow(run, [BUGS[name] for name in left], segments, known)
        if not names:
            return Cause(stage, size, None, None, ()), run
        cause = Cause(stage, size, names[0], left[names[0]], tuple(names[1:]))
        return cause, BUGS[names[0]].inject(run)

    def explaining(
        self, run: Run, segment: Sequence[Block], known: Mapping[str, Array], errors: Mapping[str, float]
    ) -> Iterator[tuple[str, float]]:
        """Bugs that reproduce the segment, and the error that is left.

        A bug has to explain every stage, or the last one alone: libraries cut a block differently inside.
        """
        kinds, output = {block.kind for block in segment}, segment[-1].output
        candidates = [bug for bug in BUGS.values() if kinds & set(bug.shows_in)]
        limit = max(self.limit, ONE_LEVEL) if segment[-1].kind == "pixels" else self.limit
        for bug in candidates:
            try:
                left = self.errors(bug.inject(run), segment, known)
            except Pg2RefError:  # there is no such model: a quantised head cannot be read transposed
                continue
            for was, remains in ((max(errors.values()), max(left.values())), (errors[output], left[output])):
                if remains <= limit and remains * BETTER < was and was > self.limit:
                    yield bug.name, remains
                    break

    def narrow(
        self, run: Run, bugs: list[Bug], segments: Sequence[Sequence[Block]], known: Mapping[str, Array]
    ) -> list[str]:
        """Those of the bugs that explain most of the segments that follow, too."""
        for previous, segment in pairwise(segments):
            if len(bugs) < 2:
                break
            known = self.after(run, previous, known)
            errors = {bug.name: max(self.errors(bug.inject(run), segment, known).values()) for bug in bugs}
            bugs = [bug for bug in bugs if errors[bug.name] <= self.limit] or bugs
        return [bug.name for bug in bugs]


def error(stage: str, ours: Array, theirs: Array, run: Run) -> float:
    """NRMSE of OTHER's stage, infinite where the shapes do not fit or a number is not finite."""
    if stage.endswith(LAST_ROWS):
        rows = min(len(ours), len(theirs))
        ours, theirs = ours[-rows:], theirs[-rows:]
    elif stage == PREFIX and len(theirs) == len(run.prompt_ids):
        ours = ours[: len(theirs)]
    if ours.size != theirs.size or (stage == IDS and not np.array_equal(ours, theirs)):
        return math.inf
    if stage == IDS:
        return 0.0
    difference = measure(ours, theirs)
    return math.inf if difference.not_finite else difference.nrmse
