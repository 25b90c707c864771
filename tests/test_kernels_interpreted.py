"""Kernel bodies run by Python itself give what they give compiled, and no line of theirs is left out.

What Python does not run are the bodies that call an inner loop of simd/: test_kernel_paths.py has those.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import interpreted_kernels
import numpy as np
import pytest
from closeness import assert_close

from pg2ref.arrays import Array

PROGRAM = Path(interpreted_kernels.__file__)
NEVER_LEFT_OUT = {  # bodies that must be among those found: most of the arithmetic outside of linear layers
    "elementwise.rms_norm_rows",
    "elementwise.rotate_rows",
    "exponential.split_exp",
    "stored.bf16_bits",
    "attention.softmax",
    "attention.attend_one",
    "quantized.quantize_rows",
}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, Array], Mapping[str, list[int]]]:
    """Results, and for each body the lines that were not executed."""
    folder = tmp_path_factory.mktemp("interpreted")
    command = [sys.executable, str(PROGRAM), str(folder / "out.npz"), str(folder / "lines.json")]
    done = subprocess.run(command, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "out.npz") as stored:
        found = {name.replace("|", "/"): stored[name] for name in stored.files}
    return found, json.loads((folder / "lines.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compiled() -> Mapping[str, Array]:
    found = interpreted_kernels.results()
    assert interpreted_kernels.elementwise.gelu_chunks.serial.signatures, "not compiled"
    return found


def test_every_line_was_executed(interpreted: tuple[Mapping[str, Array], Mapping[str, list[int]]]) -> None:
    missed = interpreted[1]
    assert set(missed) >= NEVER_LEFT_OUT
    assert {name: lines for name, lines in missed.items() if lines} == {}


def test_results_are_those_of_compiled_kernels(
    interpreted: tuple[Mapping[str, Array], Mapping[str, list[int]]], compiled: Mapping[str, Array]
) -> None:
    assert set(interpreted[0]) == set(compiled)
    for name, expected in compiled.items():
        actual, (kind, case) = interpreted[0][name], name.split("/")
        if kind == "bits":
            np.testing.assert_array_equal(actual, expected, err_msg=name)
        elif kind == "attend_bf16":  # a weight may fall to the next bf16 number; weights add up to 1, values are below
            assert np.abs(actual - expected).max() <= 2.0**-7, name
        else:
            assert_close(actual, expected, kind, terms=int(case.split("_")[0]) if kind in ("attend", "add_thin") else 1)


def test_a_line_that_is_not_executed_is_noticed() -> None:
    """The measure itself: a function with a branch that nothing takes."""
    counter = interpreted_kernels.LineCounter({"branches": branches.__code__})
    sys.settrace(counter)
    try:
        branches(1)
    finally:
        sys.settrace(None)
    line = branches.__code__.co_firstlineno
    assert counter.missed() == {"branches": [line + 2]}


def branches(number: int) -> int:
    if number < 0:
        return -1
    return number


def test_kernels_with_inner_loops_of_their_own_import_without_a_compiler() -> None:
    program = "import pg2ref.kernels.linear, pg2ref.kernels.attention, pg2ref.kernels.quantized"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"NUMBA_DISABLE_JIT": "1"})
    assert done.returncode == 0
