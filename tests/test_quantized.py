"""Quantised matrices: the layout against loops, scales against the usual ones, and numbers at the ends of the range."""

from typing import Any

import numpy as np
import pytest
from oracles import naive_quantized

from pg2ref import quantized
from pg2ref.arrays import Array, bf16_to_f32, f32_to_bf16
from pg2ref.errors import ShapeError
from pg2ref.quantized import QuantizedMatrix, dequantize, pick_rows, quantize_matrix, stored_shapes, widen_rows

SHAPES = [(1, 1), (16, 32), (17, 33), (15, 31), (37, 97), (48, 64), (3, 200)]
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
LOWEST, HIGHEST = {8: -127, 4: -8}, {8: 127, 4: 7}
LARGEST = float(np.finfo(np.float32).max)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def random_matrix(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> QuantizedMatrix:
    codes_shape, scales_shape = stored_shapes(shape, bits)
    codes = rng.integers(0, 256, codes_shape, np.uint8)
    return QuantizedMatrix(codes, f32_to_bf16(normal(rng, *scales_shape)), shape, bits)


def decoded(matrix: QuantizedMatrix) -> Array:
    return np.array(naive_quantized.decode(*matrix))


def relative_error(weight: Array, matrix: QuantizedMatrix) -> float:
    return float(np.linalg.norm(dequantize(matrix, F64) - weight) / np.linalg.norm(weight))


# Layout.


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_code_stands_where_the_layout_says(bits: int, shape: tuple[int, int], rng: np.random.Generator) -> None:
    matrix = random_matrix(rng, shape, bits)
    exact = decoded(matrix)
    for dtype in (F32, F64):  # 16 bits at most: exact in both
        weights = dequantize(matrix, dtype)
        assert weights.dtype == dtype
        np.testing.assert_array_equal(weights, exact)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_a_part(bits: int, rng: np.random.Generator) -> None:
    matrix = random_matrix(rng, (53, 70), bits)
    exact = decoded(matrix)
    for start, stop in [(0, 53), (0, 1), (15, 17), (16, 32), (33, 48), (50, 99), (7, 7)]:
        np.testing.assert_array_equal(dequantize(matrix, F32, start, stop), exact[start:stop])
        np.testing.assert_array_equal(widen_rows(matrix, F32, start, stop), exact[start:stop])
    for ids in ([0], [52, 3, 3, 16, 15], []):
        np.testing.assert_array_equal(pick_rows(matrix, np.array(ids, np.int64), F32), exact[ids].reshape(-1, 70))
    plain = f32_to_bf16(normal(rng, 5, 7))
    np.testing.assert_array_equal(widen_rows(plain, F32, 1, 3), bf16_to_f32(plain)[1:3])
    np.testing.assert_array_equal(pick_rows(plain, np.array([4, 0]), F32), bf16_to_f32(plain)[[4, 0]])
    for outside in (-1, matrix.shape[0]):  # the last block has rows that only fill it up
        with pytest.raises(IndexError, match=str(outside)):
            pick_rows(matrix, np.array([0, outside]), F32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_fills_up_is_zero(bits: int, shape: tuple[int, int], rng: np.random.Generator) -> None:
    matrix = quantize_matrix(normal(rng, *shape) + 1, bits)
    assert (matrix.codes.shape, matrix.scales.shape) == stored_shapes(shape, bits)
    assert set(naive_quantized.fillers(matrix.codes, shape, bits)) <= {1 << bits - 1}
    scales = matrix.scales.transpose(0, 2, 1).reshape(-1, matrix.scales.shape[1])
    assert not scales[shape[0] :].any()
    assert scales[: shape[0]].all()


def test_bits_a_weight() -> None:
    for bits, expected in ((8, 8.5), (4, 4.5)):
        matrix = quantize_matrix(np.ones((64, 64), np.float32), bits)
        assert matrix.nbytes * 8 / matrix.size == expected


# Scales and codes.


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_the_nearest_for_their_scale(bits: int, rng: np.random.Generator) -> None:
    weight = normal(rng, 19, 83)
    matrix = quantize_matrix(weight, bits)
    exact, scales = decoded(matrix), bf16_to_f32(matrix.scales)
    scale = np.repeat(scales.transpose(0, 2, 1).reshape(-1, 3), 32, axis=1)[:19, :83].astype(np.float64)
    numbers = np.clip(np.rint(weight / scale), LOWEST[bits], HIGHEST[bits])
    np.testing.assert_array_equal(exact, numbers * scale)
    if bits == 8:
        assert (np.abs(exact - weight) <= np.abs(scale) / 2 * (1 + 1e-6)).all(), "8 bits clip nothing"


HEAVY = {"normal": np.inf, "student 5": 5.0, "student 3": 3.0}


@pytest.mark.parametrize("tails", HEAVY)
@pytest.mark.parametrize(("bits", "of_absmax"), [(4, 0.88), (8, 0.945)])
def test_scales_beat_the_usual_ones(bits: int, of_absmax: float, tails: str, rng: np.random.Generator) -> None:
    """Over all groups; the docstring of quantized.py has the numbers for normal weights."""
    freedom = HEAVY[tails]
    drawn = rng.standard_normal((16, 640)) if np.isinf(freedom) else rng.standard_t(freedom, (16, 640))
    weight = drawn.astype(np.float32)
    usual = sum(naive_quantized.absmax_error(group, HIGHEST[bits]) for group in weight.reshape(-1, 32).tolist())
    error = relative_error(weight, quantize_matrix(weight, bits))
    assert error < of_absmax * float(np.sqrt(usual) / np.linalg.norm(weight))


@pytest.mark.parametrize(("bits", "expected"), [(4, 0.0809), (8, 0.00487)])
def test_error_of_normal_weights_is_as_documented(bits: int, expected: float, rng: np.random.Generator) -> None:
    weight = normal(rng, 256, 2048)
    assert relative_error(weight, quantize_matrix(weight, bits)) == pytest.approx(expected, rel=0.01)


def test_int4_scales_are_near_the_best_there_are(rng: np.random.Generator) -> None:
    """Against 2,000 scales of either sign tried one by one, without rounding them to bf16."""
    weight = normal(rng, 4, 64)
    matrix = quantize_matrix(weight, 4)
    found = ((dequantize(matrix, F64) - weight) ** 2).reshape(-1, 32).sum(axis=1)
    for group, error in zip(weight.reshape(-1, 32).tolist(), found, strict=True):
        largest = max(abs(number) for number in group)
        tried = [sign * largest / steps for sign in (1, -1) for steps in np.linspace(5, 11, 1000)]
        best = min(naive_quantized.error_with_scale(group, scale, -8, 7) for scale in tried)
        assert error < 1.08 * best


@pytest.mark.parametrize("bits", [8, 4])
def test_what_can_be_exact_is(bits: int) -> None:
    """Weights that are a scale times codes already come back as they were."""
    codes = np.arange(LOWEST[bits], HIGHEST[bits] + 1)
    row = np.resize(codes, 256) * np.float32(0.375)
    weight = np.stack([row, -row, row * 2**-40, row * 2**40]).astype(np.float32)
    if bits == 4:
        np.testing.assert_array_equal(dequantize(quantize_matrix(weight, bits), F32), weight)
    else:  # a row of 256 has groups whose largest weight is below the last code
        assert relative_error(weight[:1], quantize_matrix(weight[:1], bits)) < 0.005


# The ends of the range.


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_of_zeros(bits: int, rng: np.random.Generator) -> None:
    weight = normal(rng, 20, 96)
    weight[3, 32:64] = 0
    weight[7] = -0.0
    matrix = quantize_matrix(weight, bits)
    assert matrix.scales[0, 1, 3] == 0
    assert (dequantize(matrix, F32)[weight == 0] == 0).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [LARGEST, -LARGEST, 3.3e38, 1e30, 1e-30, 1e-35])
def test_very_large_and_very_small_weights(bits: int, size: float, rng: np.random.Generator) -> None:
    """Nothing overflows on the way, and the error is that of weights around one."""
    unit = np.clip(normal(rng, 16, 64) / 4, -1, 1)
    unit[:, 5] = 1
    unit[:, 40] = -1
    weight = (unit.astype(np.float64) * size).astype(np.float32)
    with np.errstate(all="raise", under="ignore"):
        matrix = quantize_matrix(weight, bits)
    weights = dequantize(matrix, F32)
    assert np.isfinite(weights).all()
    ratio = np.linalg.norm(weights / size - weight / np.float64(size)) / np.linalg.norm(unit)
    assert ratio < {8: 0.012, 4: 0.13}[bits]


@pytest.mark.parametrize("bits", [8, 4])
def test_denormals_become_zero(bits: int) -> None:
    weight = np.full((16, 32), 1e-40, np.float32)
    weight[1] = -1e-39
    weight[2, 3] = 1.0  # beside a weight of ordinary size they are nothing
    matrix = quantize_matrix(weight, bits)
    weights = dequantize(matrix, F32)
    assert weights[2, 3] == pytest.approx(1, rel=0.01)
    assert np.count_nonzero(weights) == 1
    stored = bf16_to_f32(matrix.scales)
    assert ((stored == 0) | (np.abs(stored) >= np.finfo(np.float32).tiny)).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_one_giant_in_a_group(bits: int) -> None:
    weight = np.full((1, 64), 1e-3, np.float32)
    weight[0, 10] = -1e4
    weights = dequantize(quantize_matrix(weight, bits), F32)
    assert weights[0, 10] == pytest.approx(-1e4, rel=0.005)
    assert (weights[0, :10] == 0).all()
    assert weights[0, 40] == pytest.approx(1e-3, rel=0.005)  # the next group is none the worse


# How it is computed changes nothing.


@pytest.mark.parametrize("bits", [8, 4])
def test_pieces_change_nothing(bits: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    weight = normal(rng, 70, 50)
    whole = quantize_matrix(weight, bits)
    by_rows = [quantize_matrix(weight[start : start + 32], bits) for start in range(0, 70, 32)]
    np.testing.assert_array_equal(np.concatenate([part.codes for part in by_rows]), whole.codes)
    np.testing.assert_array_equal(np.concatenate([part.scales for part in by_rows]), whole.scales)
    monkeypatch.setattr(quantized, "CHUNK", 1)
    again = quantize_matrix(weight, bits)
    np.testing.assert_array_equal(again.codes, whole.codes)
    np.testing.assert_array_equal(again.scales, whole.scales)


@pytest.mark.parametrize("bits", [8, 4])
def test_stored_types_of_equal_numbers_give_equal_codes(bits: int, rng: np.random.Generator) -> None:
    stored = f32_to_bf16(normal(rng, 18, 40))
    stored.flags.writeable = False
    expected = quantize_matrix(bf16_to_f32(stored), bits)
    odd: Any = np.frombuffer(b"x" + stored.tobytes(), np.uint8)[1:].view(np.uint16).reshape(18, 40)
    for weight in (stored, odd, bf16_to_f32(stored).astype(np.float64)):
        matrix = quantize_matrix(weight, bits)
        np.testing.assert_array_equal(matrix.codes, expected.codes)
        np.testing.assert_array_equal(matrix.scales, expected.scales)


@pytest.mark.parametrize(("shape", "bits"), [((3,), 8), ((2, 3, 4), 4), ((4, 4), 5), ((4, 4), 16)])
def test_what_cannot_be_quantised(shape: tuple[int, ...], bits: int) -> None:
    with pytest.raises(ShapeError, match="expected a matrix and 8 or 4 bits"):
        quantize_matrix(np.zeros(shape, np.float32), bits)
