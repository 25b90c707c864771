"""tools/watched_process.py: a program's words, its peaks, and why it failed."""

import sys

import pytest
from watched_process import ProgramFailed, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_the_memory_of_a_process_is_its_peak() -> None:
    program = "import time; b = bytearray(b'x') * 50_000_000; time.sleep(0.1); del b; time.sleep(0.05); print('done')"
    finished = run(python(program))
    assert finished.stdout == "done\n"
    assert 50e6 < finished.peaks.anonymous < 100e6
    assert finished.peaks.anonymous < finished.peaks.resident
    assert finished.seconds > 0.15


def test_nobody_looks_at_a_process_that_is_timed() -> None:
    finished = run(python("import os; print(os.environ['NAME'])"), {"NAME": "value"}, watch=False)
    assert (finished.stdout, finished.peaks.resident) == ("value\n", 0)


def test_a_program_that_fails_says_why_and_gives_its_code() -> None:
    program = "import sys; print('no such weights', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ProgramFailed, match=r"ended with 3:\nno such weights$") as failed:
        run(python(program))
    assert failed.value.exit_code == 3


def test_a_program_that_is_killed_fails_too() -> None:
    with pytest.raises(ProgramFailed, match=r"ended with -9:\n\(it said nothing\)") as failed:
        run(python("import os; os.kill(os.getpid(), 9)"))
    assert failed.value.exit_code == 1
