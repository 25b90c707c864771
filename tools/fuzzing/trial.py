"""One input through one reader: what came of it, how long it took, how far memory grew."""

import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.target import Target
from pg2ref.errors import Pg2RefError

MOST_SECONDS = 20  # of computing, for one input; the largest pictures need 5
MOST_CHARACTERS = 4000  # of a message
VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|-?\d[\d,.]*")


class TooSlow(BaseException):
    """An input took longer than MOST_SECONDS; no reader's `except Exception` takes it for damage."""


@dataclass
class Tally:
    """What a number of trials came to."""

    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)  # "read", or the class of the error
    messages: set[str] = field(default_factory=set)  # numbers and quotations taken out: how many ways to refuse
    slowest_seconds: float = 0.0
    largest_growth_bytes: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"outcomes": dict(self.outcomes), "messages": sorted(self.messages)}

    def add(self, part: Mapping[str, Any]) -> None:
        """Take in what another process found, as its `to_dict`."""
        self.tried += part["tried"]
        self.outcomes.update(part["outcomes"])
        self.messages |= set(part["messages"])
        self.slowest_seconds = max(self.slowest_seconds, part["slowest_seconds"])
        self.largest_growth_bytes = max(self.largest_growth_bytes, part["largest_growth_bytes"])
        self.faults += part["faults"]


def make_input(target: Target, seed: int, index: int) -> bytes:
    """The input of that number, the same whenever it is asked for."""
    return target.make(random.Random(f"{seed}/{target.name}/{index}"))


def try_input(target: Target, content: bytes, folder: Path) -> str:
    """The outcome; anything but a Pg2RefError is raised on, and so is one that a terminal could not show."""
    try:
        target.read(content, folder)
    except Pg2RefError as error:
        message = str(error).replace(str(folder), "FOLDER")
        assert 0 < len(message) < MOST_CHARACTERS, f"a message of {len(message)} characters"
        assert all(line.isprintable() for line in message.split("\n")), f"control characters in {message!r}"
        return f"{type(error).__name__}: {message}"
    return "read"


def run_trials(target: Target, seed: int, indices: range, folder: Path, tally: Tally) -> Iterator[int]:
    """Try each input; yields its number before it is tried, so that a crash can be laid to it.

    `folder` is emptied after each.
    """
    for index in indices:
        content = make_input(target, seed, index)
        yield index
        forget_peak()
        before, started = peak_bytes(), time.process_time()
        try:
            with alarm(MOST_SECONDS):
                outcome = try_input(target, content, folder)
        except (Exception, TooSlow) as error:
            outcome = f"FAULT {type(error).__name__}: {error}"
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            tally.faults.append(fault(index, outcome[:300], where, content))
        tally.slowest_seconds = max(tally.slowest_seconds, time.process_time() - started)
        growth = peak_bytes() - before
        tally.largest_growth_bytes = max(tally.largest_growth_bytes, growth)
        if growth > target.memory_bound:
            what = f"FAULT memory grew by {growth:,} bytes, {target.memory_bound:,} are allowed"
            tally.faults.append(fault(index, what, "memory", content))
        tally.tried += 1
        tally.outcomes[outcome.split(":")[0]] += 1
        tally.messages.add(VARYING.sub("#", outcome)[:80])
        empty(folder)


def empty(folder: Path) -> None:
    """Remove what an input left."""
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def fault(index: int, what: str, where: str, content: bytes) -> dict[str, Any]:
    """One entry of the report."""
    return {"index": index, "what": what, "where": where, "bytes": content.hex()[:20_000]}


def peak_bytes() -> int:
    """The largest resident size of this process since `forget_peak`, of all that it holds, Python's or a library's."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def forget_peak() -> None:
    """Let the peak be what is held now; Linux alone can, elsewhere growth is counted from the highest before."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raises TooSlow in the main thread after so long of its computing."""

    def raise_too_slow(*_: object) -> None:
        raise TooSlow(f"over {seconds} s")

    before = signal.signal(signal.SIGPROF, raise_too_slow)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
