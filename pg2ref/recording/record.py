"""Runs a model and writes its trace to a file as it runs: what `pg2ref trace` does."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from pg2ref.api import Model
from pg2ref.checkpoint.locate import locate
from pg2ref.checkpoint.manifest import read_manifest
from pg2ref.config import PaliGemmaConfig
from pg2ref.errors import Pg2RefError, UsageError
from pg2ref.inputs.image import ImageSource
from pg2ref.parity.trace_file import FullWriter, StatsWriter
from pg2ref.recording.noise_floor import noise_floors
from pg2ref.trace import BLOCK_ENDS, Both, Tap, no_tap

STAGES_A_LAYER, STAGES_ELSEWHERE = 16, 16  # at most


class Recorded(NamedTuple):
    """What was written."""

    stages: int
    answer_ids: tuple[int, ...]
    file_bytes: int


def choose_points(points: str) -> Callable[[str], bool]:
    """Which stages `all`, `blocks` (what goes into each tower and leaves each block) or a regular expression means.

    Raises:
        UsageError: it is no regular expression.
    """
    if points == "all":
        return lambda stage: True
    if points == "blocks":
        return lambda stage: stage.endswith(BLOCK_ENDS)
    try:
        pattern = re.compile(points)
    except re.error as error:
        raise UsageError(f"--points {points!r} is no regular expression ({error}), nor `all` or `blocks`") from None
    return lambda stage: pattern.search(stage) is not None


def trace_precision(name: str) -> str | None:
    """The precision of a trace by default: float32, but for quantised weights their own."""
    return "f32" if read_manifest(locate(name)) is None else None


def record(
    model: Model,
    images: Sequence[ImageSource],
    prompt: str,
    path: Path,
    *,
    points: Callable[[str], bool],
    mode: str = "full",
    steps: int = 0,
    with_floor: bool = False,
    tap: Tap = no_tap,
) -> Recorded:
    """Write the trace of reading images and prompt, and of `steps` tokens after that, or until the answer ends.

    No more than the stage in work is held in memory. With `with_floor` the model has to compute in float64; the run is
    repeated in float32 and bf16 then (noise_floor.py).

    Raises:
        UsageError: a floor of another precision, or points that no stage has.
        Pg2RefError: the file system refuses.
    """
    if with_floor and model.described["dtype"] != "f64":
        raise UsageError("a noise floor is measured from the truth: load with precision f64")
    most = most_stages(model.config, len(images), steps)
    try:
        with ExitStack() as stack:
            writer: FullWriter | StatsWriter
            if mode == "stats":
                writer = StatsWriter(path, points)
                listener: Tap = writer
                if with_floor:  # needs every number of the truth again; removed in the end
                    truth = stack.enter_context(FullWriter(path.with_name(path.name + ".truth"), points, most))
                    listener = Both(truth, writer)
            else:
                writer = truth = stack.enter_context(FullWriter(path, points, most))
                listener = writer
            answer = model.stream(list(images), prompt, max_new_tokens=steps + 1, tap=Both(listener, tap))
            for _ in answer:
                pass
            if not writer.recorded:
                raise UsageError("--points fits no stage: `pg2ref trace --help` says where their names stand")
            run = answer.run_facts()
            floors = {}
            if with_floor:
                pixels, ids = run.pixel_values, run.prompt_ids
                floors = noise_floors(model.numbers, pixels, ids, run.answer_ids, truth.read, points)
            writer.finish(run.to_metadata(), run.input_ids, floors)
    except OSError as error:
        raise Pg2RefError(f"{path}: cannot be written ({error.strerror}): choose another place") from error
    return Recorded(len(writer.recorded), tuple(run.answer_ids), path.stat().st_size)


def most_stages(config: PaliGemmaConfig, num_images: int, steps: int) -> int:
    """No run has more stages than this."""
    vision = num_images * (STAGES_A_LAYER * config.vision.num_hidden_layers + STAGES_ELSEWHERE)
    return vision + (1 + steps) * (STAGES_A_LAYER * config.text.num_hidden_layers + STAGES_ELSEWHERE)
