"""Every path through the kernels, forced: no instruction is emitted that the path lacks, and the numbers are equal.

Equal numbers where the arithmetic is fixed (bf16 and integer products; a processor without a fused multiply-add
may give 0 the other sign); within the table's bounds elsewhere.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from closeness import assert_close

from pg2ref.arrays import Array
from pg2ref.kernels.simd import cpu

PROGRAM = Path(__file__).parent / "kernel_numbers.py"
HOST = {name for name, present in llvm.get_host_cpu_features().items() if present}
ALWAYS = {"avx", "avx2", "fma", "f16c", "bmi", "bmi2", "popcnt", "lzcnt", "movbe", "sse4.2", "ssse3"}
PATHS = [name for name in cpu.PATHS if cpu.NEEDED.get(name, set()) <= HOST]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Array]]:
    """What each path that this processor can run computes."""
    folder, found = tmp_path_factory.mktemp("paths"), {}
    for name in PATHS:
        wanted = cpu.NEEDED.get(name, set()) | (ALWAYS if name != "generic" else set())
        features = ",".join([f"+{feature}" for feature in sorted(wanted & HOST)])
        variables = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features or "+sse2"}
        command = [sys.executable, str(PROGRAM), str(folder / f"{name}.npz")]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(folder / f"{name}.npz") as stored:
            found[name] = dict(stored)
    return found


def test_the_forced_path_was_taken(results: Mapping[str, Mapping[str, Array]]) -> None:
    assert {name: str(found["path"]) for name, found in results.items()} == {name: name for name in PATHS}


@pytest.mark.parametrize("path", PATHS)
def test_fixed_arithmetic_gives_the_same_bits(path: str, results: Mapping[str, Mapping[str, Array]]) -> None:
    first, other = results[PATHS[0]], results[path]
    assert set(first) == set(other)
    for name in first:
        if name.startswith(("bf16_", "int")):
            np.testing.assert_array_equal(other[name], first[name], err_msg=name)


@pytest.mark.parametrize("path", PATHS)
def test_the_rest_is_as_close_as_rounding_allows(path: str, results: Mapping[str, Mapping[str, Array]]) -> None:
    first, other = results[PATHS[0]], results[path]
    for name in sorted(set(first) - {"path"}):
        if name.startswith("f32_"):
            assert_close(other[name], first[name], "linear", terms=int(name.split("_")[-1]))
        elif not name.startswith(("bf16_", "int", "attend_bf16")):
            operation = "attend" if name.startswith("attend") else name
            assert_close(other[name], first[name], operation, terms=200)
