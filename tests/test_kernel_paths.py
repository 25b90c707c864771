"""Every path through the kernels, forced: no instruction is emitted that the path lacks, and the numbers are equal.

Equal numbers where the arithmetic is fixed (0 may have either sign); within the table's bounds elsewhere.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from closeness import BOUNDS, error_in_units

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
    """All of it where a multiply-add is fused, else products of bf16."""
    first, other = results[PATHS[0]], results[path]
    assert set(first) == set(other)
    for name in set(first) - {"path"}:
        if cpu.PATHS[path].fused or name.startswith("bits|"):
            np.testing.assert_array_equal(other[name], first[name], err_msg=name)


@pytest.mark.parametrize("path", PATHS)
def test_the_rest_is_as_close_as_rounding_allows(path: str, results: Mapping[str, Mapping[str, Array]]) -> None:
    first, other = results[PATHS[0]], results[path]
    for name in sorted(set(first) - {"path"}):
        kind, terms, _ = name.split("|")
        if kind == "bf16 weights":  # of attention: one may fall to the next bf16 number; they add up to 1
            assert np.abs(other[name] - first[name]).max() <= 2.0**-7, name
        elif kind not in ("bits", "company"):
            magnitude = 1.0 if kind == "gated_linear" else None
            error = error_in_units(other[name], first[name].astype(np.float64), int(terms), magnitude)
            assert error <= 2 * BOUNDS[kind].factor, name  # the errors of both add


@pytest.mark.parametrize("path", PATHS)
def test_a_row_gets_the_numbers_that_it_gets_alone(path: str, results: Mapping[str, Mapping[str, Array]]) -> None:
    """Whether its matrix is read row after row, or some rows side by side because they are long."""
    differing = {name: found for name, found in results[path].items() if name.startswith("company|")}
    assert len(differing) == 6
    assert [name for name, found in differing.items() if found.any()] == []


def test_extremes_are_extreme(results: Mapping[str, Mapping[str, Array]]) -> None:
    """Some sums of tiny products are denormal, hence 0, and some are not; some sums of large ones overflow."""
    tiny, large = (
        np.concatenate([value.reshape(-1) for name, value in results[PATHS[0]].items() if name.endswith(ending)])
        for ending in ("_tiny", "_large")
    )
    assert (tiny == 0).any()
    assert ((tiny != 0) & (np.abs(tiny) < 1e-37)).any()
    assert not np.isfinite(large).all()
    assert (np.abs(large[np.isfinite(large)]) > 1e38).any()
