"""The same rows over a Ray cluster: a worker on each node, each with all of that node's cores.

Rows go out in chunks. A chunk whose worker dies goes to another one, and the node gets a new worker as long as it is
there. Weights are mapped files on every node: the model's name, and the paths of the rows, must mean the same on all.
"""

import os
import re
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pg2ref.batch.rows import Row
from pg2ref.batch.run import Outcome, answer_rows, error_line
from pg2ref.errors import Pg2RefError, UsageError
from pg2ref.generation.options import AnswerOptions

CHUNK = 2  # rows for each that decodes at a time
AHEAD = 4  # chunks for each worker: how many may wait for an earlier one
SECONDS_TO_CONNECT = 10
MOST_TRIES = 3  # workers that a chunk may cost


@dataclass
class Chunk:
    """Rows that one worker answers in one call."""

    rows: list[Row]
    tries: int = 0
    outcomes: list[Outcome] | None = None


class Worker:
    """What runs on a node: a model, opened once."""

    def __init__(self, choices: Mapping[str, Any], options: AnswerOptions, together: int) -> None:
        self.choices, self.options, self.together = choices, options, together

    def open(self) -> None:
        """Load the model."""
        from pg2ref.api import load

        self.model = load(**self.choices)

    def answer(self, rows: list[Row]) -> list[Outcome]:
        """The outcomes of a chunk."""
        return list(answer_rows(self.model, rows, self.options, self.together))


def answer_rows_on_ray(
    choices: Mapping[str, Any],
    rows: Iterable[Row],
    options: AnswerOptions,
    together: int,
    address: str | None = None,
) -> Iterator[Outcome]:
    """Answer rows on a cluster and yield them finished and in order; the results are those of `answer_rows`.

    Args:
        choices: what every worker calls `load` with.
        rows: with absolute paths.
        options: for all rows.
        together: how many rows a worker decodes at a time.
        address: of the cluster; by default that in RAY_ADDRESS, else one is started on this machine.

    Raises:
        UsageError: the `ray` extra is missing.
        Pg2RefError: there is no cluster, or all workers were lost.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs the `ray` extra: pip install 'pg2ref[ray]'") from None
    _check_reachable(address or os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (ConnectionError, ValueError) as error:
        raise Pg2RefError(f"no Ray cluster: {error}") from error
    try:
        yield from _Cluster(ray, choices, options, together).run(iter(rows))
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes. Addresses that are no host and port are left to it."""
    found = re.fullmatch(r"(?:ray://)?(\S+):(\d+)", address)
    try:
        if found is not None:
            socket.create_connection((found[1], int(found[2])), SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise Pg2RefError(f"no Ray cluster answers at {address} ({error}): start one, or check the address") from error


class _Cluster:
    """Who works on what."""

    def __init__(self, ray: Any, choices: Mapping[str, Any], options: AnswerOptions, together: int) -> None:
        self.ray, self.arguments, self.rows_each = ray, (dict(choices), options, together), CHUNK * together
        self.running: dict[Any, tuple[Any, dict[str, Any], Chunk | None]] = {}  # call -> worker, node, None: opening
        self.idle: deque[tuple[Any, dict[str, Any]]] = deque()
        self.lost: deque[Chunk] = deque()

    def run(self, rows: Iterator[Row]) -> Iterator[Outcome]:
        nodes = [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        for node in nodes:
            self._hire(node)
        waiting: deque[Chunk] = deque()
        is_open = True
        while is_open or waiting:
            while self.idle and (self.lost or (is_open and len(waiting) < AHEAD * len(nodes))):
                chunk = self.lost.popleft() if self.lost else Chunk(list(islice(rows, self.rows_each)))
                if not chunk.tries:
                    is_open = len(chunk.rows) == self.rows_each
                    waiting.append(chunk)
                self._give(chunk)
            if waiting and waiting[0].outcomes is not None:
                yield from waiting.popleft().outcomes or ()
            else:
                self._wait()

    def _hire(self, node: dict[str, Any]) -> None:
        """A new worker for a node; it works once its model is open."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        cores = int(node["Resources"]["CPU"])
        worker = (
            self.ray.remote(Worker)
            .options(
                num_cpus=cores,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                runtime_env={"env_vars": {"NUMBA_NUM_THREADS": str(cores)}},
            )
            .remote(*self.arguments)
        )
        self.running[worker.open.remote()] = worker, node, None

    def _give(self, chunk: Chunk) -> None:
        worker, node = self.idle.popleft()
        chunk.tries += 1
        self.running[worker.answer.remote(chunk.rows)] = worker, node, chunk

    def _wait(self) -> None:
        """Until one call ends, well or badly."""
        if not self.running:
            raise Pg2RefError("all Ray workers were lost: see to the cluster, then --resume goes on where this stopped")
        (call,), _ = self.ray.wait(list(self.running), num_returns=1)
        worker, node, chunk = self.running.pop(call)
        try:
            outcomes = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:  # raised by our code, not by the cluster
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            if chunk is None:
                return  # it died before it worked: the others go on without that node
            self._lose(chunk, error)
            self._hire(node)
        else:
            if chunk is not None:
                chunk.outcomes = outcomes
            self.idle.append((worker, node))

    def _lose(self, chunk: Chunk, error: Exception) -> None:
        if chunk.tries < MOST_TRIES:
            self.lost.append(chunk)
            return
        got = " ".join(str(error).split())
        reason = Pg2RefError(f"{MOST_TRIES} workers died of this row or one beside it: {got}")
        chunk.outcomes = [Outcome(row, error_line(row, reason), failed=True) for row in chunk.rows]
