"""Rows to results on this machine: in order, a bounded number at a time, whatever goes wrong with single ones."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pg2ref.answer import Answer
from pg2ref.api import Model
from pg2ref.batch.rows import Row
from pg2ref.errors import CheckpointError, Pg2RefError, UsageError
from pg2ref.generation.batch import Together
from pg2ref.generation.options import AnswerOptions
from pg2ref.trace import NotFiniteError

ERROR_SCHEMA = "pg2ref/error/1"
WAITING = 16  # finished rows for each that decodes: how many may wait for an earlier one


@dataclass
class Outcome:
    """A row and what came of it, once it is finished: a line of JSON."""

    row: Row
    line: str | None = None
    failed: bool = False

    def answered(self, answer: Answer) -> None:
        """Its result, a `pg2ref/result/1` with the row's id and number."""
        self.line = json.dumps({**answer.result().to_dict(), "id": self.row.id, "row": self.row.number})

    def fail(self, error: Exception) -> None:
        """What went wrong instead, a `pg2ref/error/1`."""
        self.failed = True
        self.line = error_line(self.row, error)


def error_line(row: Row, error: Exception) -> str:
    """The line of a row that has no result."""
    found: dict[str, Any] = {"schema": ERROR_SCHEMA, "message": str(error) or "not enough memory"}
    found["exit_code"] = error.exit_code if isinstance(error, Pg2RefError) else 1
    return json.dumps({**found, "id": row.id, "row": row.number})


def answer_rows(model: Model, rows: Iterable[Row], options: AnswerOptions, together: int) -> Iterator[Outcome]:
    """Answer rows, up to `together` at a time, and yield them finished and in order.

    Each result is the one that `model.generate` gives, bit for bit. On the NumPy backend, whose products depend on how
    many rows they have, rows are answered one by one.

    Raises:
        UsageError: options that a batch cannot follow.
        CheckpointError: a weight is not finite.
    """
    if options.beams > 1 or not options.use_cache:
        raise UsageError("a batch decodes with a cache and without beams: leave out beams and use_cache")
    if together < 1:
        raise UsageError(f"together is {together}, expected 1 or more")
    return _in_order(_Run(model, options, 1 if model.described["backend"] == "numpy" else together), iter(rows))


def _in_order(run: "_Run", rows: Iterator[Row]) -> Iterator[Outcome]:
    waiting: deque[Outcome] = deque()
    is_open = True
    while is_open or waiting:
        while is_open and run.has_room() and len(waiting) < WAITING * run.together:
            row = next(rows, None)
            is_open = row is not None
            if row is not None:
                waiting.append(run.start(row))
        run.step()
        while waiting and waiting[0].line is not None:
            yield waiting.popleft()


class _Run:
    """Which answers are in the making, and whose they are."""

    def __init__(self, model: Model, options: AnswerOptions, together: int) -> None:
        self.model, self.options, self.together = model, options, together
        self.live: Together[int] = Together(model.numbers)
        self.answers: dict[int, tuple[Outcome, Answer]] = {}

    def has_room(self) -> bool:
        return len(self.answers) < self.together

    def start(self, row: Row) -> Outcome:
        """Read images and prompt; an outcome that is finished already where they cannot be."""
        outcome = Outcome(row)
        try:
            if row.error is not None:
                raise row.error
            options = self.options
            if row.max_new_tokens is not None:
                options = replace(options, max_new_tokens=row.max_new_tokens)
            answer = Answer(self.model, self.model.prepare(row.sources(), row.prompt), options)
            ids = answer.prepared.prompt_ids
            self.model.compute(lambda: self.live.start(row.number, answer.look(), ids, options))
            self.answers[row.number] = outcome, answer
        except CheckpointError:
            raise  # no row can be answered
        except (Pg2RefError, MemoryError) as error:
            outcome.fail(error)
        return outcome

    def step(self) -> None:
        """A token of each."""
        for number, event in self.model.compute(self.live.step):
            outcome, answer = self.answers[number]
            if isinstance(event, NotFiniteError):
                outcome.fail(event)
            else:
                answer.add(event)
                if event.finish_reason:
                    outcome.answered(answer)
            if outcome.line is not None:
                del self.answers[number]
