"""The kernels next to other threads and processes: the same numbers, nobody hangs, nobody is killed.

Each case runs in a fresh interpreter, because what happens depends on whether kernels have run before.
"""

import os
import subprocess
import sys

import pytest

SETUP = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import numpy as np
from pg2ref.kernels import elementwise, linear

def product(seed):
    x = np.random.default_rng(seed).standard_normal((40, 256)).astype(np.float32)
    return linear.linear(elementwise.gelu(np.tile(x, (8, 1))), x[:, :256])

def digest(seed):
    return product(seed).tobytes()

if __name__ == "__main__":
"""
CASES = {
    "spawn": """
    expected = [digest(seed) for seed in range(3)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(digest, range(3))) == expected
    """,
    "fork after kernels ran": """
    expected = [digest(seed) for seed in range(3)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(digest, range(3))) == expected
    assert digest(0) == expected[0]
    """,
    "fork before kernels ran": """
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        there = list(pool.map(digest, range(3)))
    assert [digest(seed) for seed in range(3)] == there
    """,
    "fork of a fork": """
    expected = digest(1)
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0 if digest(1) == expected else 1)
        inner = os.waitstatus_to_exitcode(os.wait()[1])
        os._exit(inner or (0 if digest(1) == expected else 1))
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    """,
    "threads": """
    expected = [digest(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert list(pool.map(digest, range(8))) == expected
    """,
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_in(case: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if case.startswith("fork") and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    program = tmp_path_factory.mktemp("processes") / "program.py"
    program.write_text(SETUP + CASES[case])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(program)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Terminating" not in done.stderr


def test_importing_the_package_loads_no_compiler() -> None:
    program = "import sys, pg2ref, pg2ref.api, pg2ref.cli.main; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
