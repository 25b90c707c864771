"""The ladder's rungs compute one product, and its table says what was measured."""

from collections import defaultdict
from pathlib import Path

import kernel_ladder
import numpy as np
import pytest
from closeness import BOUNDS, assert_close

from pg2ref.benchmark.report import Limit

README = Path(__file__).parent.parent / "kernels" / "README.md"


class Steady:
    """A machine of 1e9 of everything a second."""

    threads, path = 2, "avx512"

    def __init__(self) -> None:
        self.asked: dict[str, int] = defaultdict(int)

    def measure(self, name: str) -> float:
        self.asked[name] += 1
        return 1e9

    def limits(self) -> tuple[Limit, ...]:
        return tuple(Limit(name, (1e9,), is_emulated=False) for name in ("read", "f32", "bf16", "int8"))


@pytest.fixture(scope="module")
def rungs() -> list[kernel_ladder.Rung]:
    return kernel_ladder.make_rungs(rows=8, outputs=16, long_outputs=20)


def test_all_rungs_compute_the_same_product(rungs: list[kernel_ladder.Rung]) -> None:
    """In order of precision: float32 within its bound; bf16 and int8 as far off as rounding inputs takes them."""
    for one_row in (False, True):
        ours = [rung for rung in rungs if rung.name.startswith("one row") == one_row]
        results = {rung.name: rung.call()[0] for rung in ours}
        exact = results[ours[0].name].astype(np.float64)
        for name, result in results.items():
            if "bf16" in name or "int8" in name:
                error = np.linalg.norm(result - exact) / np.linalg.norm(exact)
                assert 1e-4 < error < (2.0**-8 if "bf16" in name else 0.02), name
            else:
                error_bound = 2 * BOUNDS["linear"].factor  # the errors of both add
                assert np.abs(result - exact).max() <= error_bound * 2.0**-23 * 2304**0.5 * np.abs(exact).max(), name
    assert_close(ours[1].call()[0], exact, "linear", terms=kernel_ladder.INPUTS)


def test_a_limit_is_measured_before_each_rung(rungs: list[kernel_ladder.Rung]) -> None:
    machine = Steady()
    found = kernel_ladder.climb(rungs, machine, repeat=3)  # type: ignore[arg-type]
    assert machine.asked == {"f32": 12, "bf16": 3, "int8": 3, "read": 9}
    for one in found:
        assert one.share == pytest.approx(one.rate / 1e9)
    table = kernel_ladder.markdown(found, machine, 3)  # type: ignore[arg-type]
    assert table.count("\n| ") == 1 + len(rungs)
    assert "float32 1 GFLOP/s" in table


def test_the_readme_has_a_row_for_each_rung(rungs: list[kernel_ladder.Rung]) -> None:
    text = README.read_text(encoding="utf-8")
    assert [rung.name for rung in rungs if text.count(f"| {rung.name} | `{rung.place}` |") != 2] == []  # of two paths
