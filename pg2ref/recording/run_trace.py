"""A trace in memory that knows its run, and can be saved."""

from collections.abc import Callable
from pathlib import Path

from pg2ref.errors import Pg2RefError, UsageError
from pg2ref.parity.trace_file import FullWriter, StatsWriter, file_behind
from pg2ref.recording.facts import RunFacts
from pg2ref.trace import Trace

MODES = ("full", "stats")


class RunTrace(Trace):
    """What `Model.trace` gives: `stages` by name, and `save`. `run` is set when the run has ended."""

    run: RunFacts

    def __init__(self, points: Callable[[str], bool] = lambda stage: True):
        super().__init__(points)

    def save(self, path: str | Path, *, mode: str = "full") -> None:
        """Write a trace file (parity/trace_file.py): all numbers, or with mode `stats` a summary of each stage.

        Raises:
            UsageError: there is no such mode, or `path` is a folder, a device or a pipe.
            Pg2RefError: the file system refuses.
        """
        if mode not in MODES:
            raise UsageError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        target = file_behind(path)
        facts, ids = self.run.to_metadata(), self.run.input_ids
        try:
            if mode == "stats":
                summaries = StatsWriter(target, self.points)
                for stage, array in self.stages.items():
                    summaries(stage, array)
                summaries.finish(facts, ids)
                return
            with FullWriter(target, self.points, len(self.stages)) as writer:
                for stage, array in self.stages.items():
                    writer(stage, array)
                writer.finish(facts, ids)
        except OSError as error:
            raise Pg2RefError(f"{path}: cannot be written ({error.strerror}): choose another place") from error
