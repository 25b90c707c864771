"""One call for the tests of a port: is what it computed what the reference has, but for rounding?"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from pg2ref.arrays import Array
from pg2ref.errors import UsageError
from pg2ref.parity.compare import Comparison, StageComparison, compare
from pg2ref.parity.name_map import load_map
from pg2ref.parity.records import open_record, rename

LISTED = 5


def assert_trace_close(
    other: str | os.PathLike[str] | Mapping[str, ArrayLike],
    reference: str | os.PathLike[str],
    *,
    name_map: str | None = None,
    precision: str | None = None,
    tolerance: float | None = None,
    required: str | None = None,
) -> Comparison:
    """Compare as `pg2ref compare` does, and raise AssertionError at a divergence; else give the comparison.

    Args:
        other: what is to be judged: a file or folder, or arrays by name, `{"text/layer_00/out": array_TD}`, of NumPy or
            of what NumPy makes an array of.
        reference: a trace, best one with a noise floor; one of mode stats is small enough to keep beside the tests.
        name_map: `transformers`, `big_vision`, `mlx`, or a TOML file (name_map.py).
        precision: `f32` or `bf16`, OTHER's arithmetic; by default what its numbers look like.
        tolerance: the relative error to allow at each stage, instead of the noise floor's.
        required: a regular expression; stages of the reference in whose names it is found OTHER has to have.

    Raises:
        AssertionError: a stage is farther away than rounding explains; the message names the first.
        InputError: a file cannot be read, or the two have no stage in common.
        UsageError: an option has no such value; or OTHER lacks a stage that is required; or an array of OTHER, named by
            our names, is not in the reference, so that nothing would judge it, or is none.
    """
    __tracebackhide__ = True
    found_map = load_map(name_map) if name_map else None
    if isinstance(other, Mapping):
        found = rename("OTHER", {name: as_array(name, one) for name, one in other.items()}, {}, found_map)
    else:
        found = open_record(Path(other), found_map)
    expected = open_record(Path(reference))
    comparison = compare(expected, found, precision=precision, tolerance=tolerance, required=required)
    if comparison.extra and isinstance(other, Mapping) and found_map is None:
        raise UsageError(
            f"{', '.join(comparison.extra[:LISTED])}: {reference} has no such stage, expected such as "
            f"{', '.join(stage.stage for stage in comparison.stages[:LISTED])}: correct the name or leave it out"
        )
    if not comparison.is_close:
        raise AssertionError(describe(comparison))
    return comparison


def as_array(name: str, numbers: ArrayLike) -> Array:
    """What NumPy makes of it."""
    try:
        return np.asarray(numbers)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor in bf16, on a device, or with a gradient
        raise UsageError(
            f"{name}: expected an array, got {type(numbers).__name__} ({error}): convert it to float32 in NumPy first"
        ) from None


def describe(comparison: Comparison) -> str:
    """What diverges, in a few lines."""
    diverging = [stage for stage in comparison.stages if not stage.is_good]
    lines = [f"{len(diverging)} of {len(comparison.stages)} stages diverge; in the order of computation:"]
    lines += [f"  {describe_stage(stage)}" for stage in diverging[:LISTED]]
    return "\n".join(lines)


def describe_stage(stage: StageComparison) -> str:
    """A stage that diverges, in a line."""
    if stage.nrmse is None:
        return f"{stage.stage}: shape {stage.other_shape}, expected {stage.shape}"
    text = f"{stage.stage}: {stage.verdict}, error {stage.nrmse:.3g}, allowed {stage.limit:.3g}"
    return f"{text}; scale {stage.scale:.5g}, cosine {stage.cosine:.6f}, worst at {stage.worst}"
