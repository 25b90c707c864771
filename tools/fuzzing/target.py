"""What is fuzzed: a reader, how its inputs are made, and how much memory one of them may take."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fuzzing.mutation import Rng

MB = 1 << 20


class Target(NamedTuple):
    """One reader.

    `read` gets an input and an empty folder of its own to lay it into; it returns when the input was accepted, and then
    has checked what it got. Anything but a Pg2RefError is a fault.
    """

    name: str
    make: Callable[[Rng], bytes]
    read: Callable[[bytes, Path], None]
    memory_bound: int  # bytes that the process may grow by during one input
