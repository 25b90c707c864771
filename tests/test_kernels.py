"""The kernels as a whole: parity through all towers, independence of threads and company, and the disk cache.

Each operation on its own is compared with its oracle in test_ops.py.
"""

import os
import tracemalloc
from pathlib import Path
from typing import Any

import golden_records
import numpy as np
import pytest
import small_models
from closeness import assert_close
from oracles import naive_ops

from pg2ref.arrays import Array, bf16_to_f32, f32_to_bf16
from pg2ref.errors import UsageError
from pg2ref.kernels import compiling, elementwise, few_rows, linear, panels, stored
from pg2ref.kernels.simd import cpu
from pg2ref.model import backend
from pg2ref.model.paligemma import PaliGemma


def fast_model(folder: Path) -> PaliGemma:
    return small_models.open_model(folder)._replace(ops=backend.fast("f32"))


@pytest.mark.parametrize("case_name", small_models.CASES)
def test_stages_and_answers_agree_with_the_golden_records(case_name: str) -> None:
    record = golden_records.read_record(case_name)
    model = fast_model(record.folder)
    golden_records.check_stages(model, record)
    if record.answer is not None:
        golden_records.check_answer(model, record)


def bf16_weight(rng: np.random.Generator, outputs: int, inputs: int) -> Array:
    return f32_to_bf16(rng.standard_normal((outputs, inputs)).astype(np.float32))


@pytest.mark.parametrize("multiply", [linear.linear, linear.linear_bf16])
@pytest.mark.parametrize("inputs", [256, few_rows.LONG, few_rows.LONG + 128])
def test_few_rows_are_bit_equal_to_one(multiply: Any, inputs: int, rng: np.random.Generator) -> None:
    """Sequences that decode together get the numbers that they get alone, where long rows are read another way."""
    x, weight = rng.standard_normal((few_rows.FEW_ROWS, inputs)).astype(np.float32), bf16_weight(rng, 67, inputs)
    together = multiply(x, weight)
    for t in range(few_rows.FEW_ROWS):
        np.testing.assert_array_equal(multiply(x[t : t + 1], weight)[0], together[t])


def test_blocks_of_inputs_change_nothing(rng: np.random.Generator) -> None:
    """More inputs than a block holds, and a last panel that is not full, with a bias."""
    inputs, outputs = panels.BLOCK + 3 * panels.LANES, panels.PANEL + panels.LANES
    x = rng.standard_normal((19, inputs)).astype(np.float32)
    weight, bias = rng.standard_normal((outputs, inputs)).astype(np.float32), rng.standard_normal(outputs)
    exact = naive_ops.linear(x.tolist(), weight.tolist(), bias.tolist())
    assert_close(linear.linear(x, weight, bias), np.array(exact), "linear", terms=inputs)


def test_rounding_to_bf16_is_that_of_the_package(rng: np.random.Generator) -> None:
    """Ties, denormals, what rounds to infinity, and NaN of any payload."""
    special = np.array([0x3F808000, 0x3F818000, 0x00000001, 0x00008000, 0x7F7FFFFF, 0x7F800001, 0xFFC00000], np.uint32)
    bits = np.concatenate([special, rng.integers(0, 1 << 32, 10_000, dtype=np.uint64).astype(np.uint32)])
    values = bits.view(np.float32)[None]
    np.testing.assert_array_equal(stored.rounded(values), f32_to_bf16(values))


def test_the_path_follows_the_features() -> None:
    assert cpu.path_of(set()).lanes == 4
    assert cpu.path_of({"avx2"}) == cpu.PATHS["generic"]
    assert cpu.path_of({"avx2", "fma"}) == cpu.PATHS["avx2"]
    wide = {"avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq"}
    assert cpu.path_of(wide) == cpu.PATHS["avx512"]


def test_numbas_own_variables_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.config.CPU_NAME", "generic")
    monkeypatch.setattr("numba.core.config.CPU_FEATURES", None)
    assert cpu.target_features() == set()
    monkeypatch.setattr("numba.core.config.CPU_FEATURES", "+avx2,+fma,-avx512f")
    assert cpu.target_features() == {"avx2", "fma"}
    monkeypatch.setattr("numba.core.config.CPU_NAME", None)
    monkeypatch.setattr("numba.core.config.CPU_FEATURES", None)
    monkeypatch.setattr("numba.core.config.ENABLE_AVX", 0)
    assert cpu.target_features() == set()


@pytest.mark.parametrize("rows", [1, 19])
@pytest.mark.parametrize("gate_is_bf16", [True, False])
def test_gate_and_up_of_different_types(rows: int, gate_is_bf16: bool, rng: np.random.Generator) -> None:
    """A checkpoint may store any tensor in any type."""
    x, gate, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, 128), (37, 128), (37, 128)))
    gate, up = bf16_to_f32(f32_to_bf16(gate)), bf16_to_f32(f32_to_bf16(up))
    expected = linear.gated_linear(x, f32_to_bf16(gate), f32_to_bf16(up), is_bf16=True)
    mixed = (f32_to_bf16(gate), up) if gate_is_bf16 else (gate, f32_to_bf16(up))
    np.testing.assert_array_equal(linear.gated_linear(x, *mixed, is_bf16=True), expected)
    exact = naive_ops.gated_gelu((x.astype(np.float64) @ gate.T).tolist(), (x.astype(np.float64) @ up.T).tolist())
    magnitude = float(np.abs(x @ gate.T).max() * np.abs(x @ up.T).max())
    assert_close(linear.gated_linear(x, *mixed, is_bf16=False), np.array(exact), "gated_linear", 128, magnitude)


def test_matrices_of_a_file_beside_copies(rng: np.random.Generator) -> None:
    """Read-only views, writable arrays and odd addresses in one call."""
    x, weights = rng.standard_normal((2, 128)).astype(np.float32), [bf16_weight(rng, 9, 128) for _ in range(3)]
    alone = [linear.linear(x, weight) for weight in weights]
    weights[0].flags.writeable = False
    odd = np.zeros(weights[2].nbytes + 1, np.uint8)[1:].view(np.uint16).reshape(9, 128)
    odd[:] = weights[2]
    for out, expected in zip(linear.linear_each(x, [*weights[:2], odd], [None] * 3, is_bf16=False), alone, strict=True):
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("rows", [1, 19])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint16])
def test_weights_that_are_converted_piece_by_piece(
    is_bf16: bool, rows: int, dtype: type, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other types, odd numbers of inputs, gaps between rows: the numbers of a whole converted copy, in pieces."""
    x, bias = rng.standard_normal((rows, 129)).astype(np.float32), rng.standard_normal(53).astype(np.float32)
    stored_OD = rng.standard_normal((53, 2, 129)).astype(np.float32)[:, 0]
    stored_OD = f32_to_bf16(stored_OD) if dtype == np.uint16 else stored_OD.astype(dtype)
    plain = bf16_to_f32(stored_OD) if dtype == np.uint16 else stored_OD.astype(np.float32)
    whole = np.pad(f32_to_bf16(plain) if is_bf16 else plain, ((0, 0), (0, 1)))
    expected = linear.linear_each(np.pad(x, ((0, 0), (0, 1))), [whole], [bias], is_bf16=is_bf16)[0]
    monkeypatch.setattr(linear, "CONVERTED_AT_ONCE", 7 * 129)
    np.testing.assert_array_equal(linear.linear_each(x, [stored_OD], [bias], is_bf16=is_bf16)[0], expected)
    gated = linear.gated_linear(x, stored_OD, stored_OD, is_bf16=is_bf16)
    plain_sums = linear.linear_each(x, [stored_OD], [None], is_bf16=is_bf16)[0]
    np.testing.assert_array_equal(gated, elementwise.gated_gelu(plain_sums, plain_sums))


@pytest.mark.parametrize("is_bf16", [False, True])
def test_converting_takes_no_room_for_the_whole(
    is_bf16: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = rng.standard_normal((2, 512)).astype(np.float32), np.ones((4096, 512), np.float16)
    monkeypatch.setattr(linear, "CONVERTED_AT_ONCE", 1 << 16)
    linear.linear_each(x, [weight], [None], is_bf16=is_bf16)  # compiles, which takes room too
    tracemalloc.start()
    linear.linear_each(x, [weight], [None], is_bf16=is_bf16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < weight.size * np.dtype(np.float16).itemsize / 2


def test_a_change_of_any_kernel_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []
    for path in compiling.SOURCES:
        sources.append(tmp_path / path.name)
        sources[-1].write_bytes(path.read_bytes())
        os.utime(sources[-1], (1, 1))
    monkeypatch.setattr(compiling, "SOURCES", sources)
    before = compiling.source_stamp()
    os.utime(sources[0], (2, 2))
    assert compiling.source_stamp() != before


def test_kernels_do_not_pretend_to_float64(small_folder: Path) -> None:
    import pg2ref

    with pytest.raises(UsageError, match="float32"):
        pg2ref.load(small_folder, precision="f64", backend="numba")


def test_no_flag_hides_a_nan_or_leaves_an_order_open() -> None:
    assert not {"nnan", "ninf", "fast", "reassoc", "arcp"} & compiling.FASTMATH


@pytest.mark.parametrize("logit_cap", [None, 5.0])
def test_a_nan_comes_out_as_one(logit_cap: float | None) -> None:
    """Bounds on an exponent must not turn it into a number."""
    fast = backend.fast("f32")
    bad = np.array([[np.nan, 1.0, 0.5, -2.0] * 4], np.float32)
    assert np.isnan(fast.gelu(bad)[0, 0])
    assert np.isnan(elementwise.gated_gelu(bad, np.ones_like(bad))[0, 0])
    assert np.isnan(fast.soft_cap(bad, 5.0)[0, 0])
    assert np.isfinite(fast.soft_cap(bad, 5.0)[0, 1:4]).all()
    good, nan_last = np.ones((3, 1, 16), np.float32), np.ones((3, 1, 16), np.float32)
    nan_last[2] = np.nan
    first, last = np.zeros(3, np.int64), np.array([1, 2, 2])
    out = fast.attend(good, nan_last, good, first, last, scale=0.3, logit_cap=logit_cap)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1:]).all()
