"""bfloat16 both ways, bit for bit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import naive_ops

from pg2ref.arrays import bf16_to_f32, f32_to_bf16, widen

EVERY_PATTERN = np.arange(1 << 16, dtype=np.uint16)


def round_bits(*bits: int) -> list[int]:
    """f32_to_bf16 of float32 bit patterns."""
    return f32_to_bf16(np.array(bits, np.uint32).view(np.float32)).tolist()


def test_every_pattern_widens_exactly() -> None:
    wide = bf16_to_f32(EVERY_PATTERN)
    assert wide.dtype == np.float32
    expected = np.array([naive_ops.bf16_to_float(bits) for bits in range(1 << 16)])
    is_nan = np.isnan(expected)
    assert is_nan.sum() == 2 * 127
    np.testing.assert_array_equal(np.isnan(wide), is_nan)
    np.testing.assert_array_equal(wide[~is_nan].astype(np.float64), expected[~is_nan])
    np.testing.assert_array_equal(np.signbit(wide), EVERY_PATTERN >= 0x8000)


def test_every_pattern_comes_back() -> None:
    back = f32_to_bf16(bf16_to_f32(EVERY_PATTERN))
    assert back.dtype == np.uint16
    is_nan = (EVERY_PATTERN & 0x7FFF) > 0x7F80
    np.testing.assert_array_equal(back, np.where(is_nan, EVERY_PATTERN | 0x40, EVERY_PATTERN))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F808000, 0x3F80),  # halfway between an even and an odd pattern: down to the even
        (0x3F818000, 0x3F82),  # halfway between an odd and an even one: up
        (0x3F807FFF, 0x3F80),
        (0x3F808001, 0x3F81),
        (0xBF818000, 0xBF82),  # the sign changes nothing
        (0x3FFFFFFF, 0x4000),  # into the next power of two
        (0x7F7F7FFF, 0x7F7F),  # the last number that rounds to a finite one
        (0x7F7F8000, 0x7F80),  # and the first that does not
        (0xFF7FFFFF, 0xFF80),
        (0x7F800000, 0x7F80),
        (0x7F800001, 0x7FC0),  # the smallest NaN payload would have rounded to infinity
        (0xFF800001, 0xFFC0),
        (0x7FFFFFFF, 0x7FFF),  # the largest would have rounded to minus zero
        (0x7FA10000, 0x7FE1),  # a signalling NaN keeps its payload and becomes quiet
        (0x00000000, 0x0000),
        (0x80000000, 0x8000),
        (0x00000001, 0x0000),  # denormals are numbers like others
        (0x00008000, 0x0000),
        (0x00018000, 0x0002),
        (0x007FFFFF, 0x0080),
    ],
)
def test_rounding(bits: int, expected: int) -> None:
    assert round_bits(bits) == [expected]
    assert naive_ops.float32_to_bf16(bits) == expected


@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=40))
@settings(deadline=None, max_examples=150)
def test_any_pattern_rounds_as_the_oracle_says(bits: list[int]) -> None:
    assert round_bits(*bits) == [naive_ops.float32_to_bf16(pattern) for pattern in bits]


@given(st.floats(width=32, allow_nan=False, min_value=-(2.0**127), max_value=2.0**127))
@settings(deadline=None, max_examples=200)
def test_no_bf16_number_is_nearer(number: float) -> None:
    bits = f32_to_bf16(np.array([number], np.float32)).item()
    distance = abs(naive_ops.bf16_to_float(bits) - number)
    for neighbour in (bits - 1, bits + 1):
        if neighbour & 0x7FFF < 0x7F80 and (neighbour ^ bits) < 0x8000 and neighbour >= 0:
            other = abs(naive_ops.bf16_to_float(neighbour) - number)
            assert distance < other or (distance == other and bits % 2 == 0)
    if number:
        assert math.copysign(1, naive_ops.bf16_to_float(bits)) == math.copysign(1, number)


def test_many_random_patterns(rng: np.random.Generator) -> None:
    bits = rng.integers(0, 1 << 32, 5003, dtype=np.uint32)
    expected = [naive_ops.float32_to_bf16(int(pattern)) for pattern in bits]
    np.testing.assert_array_equal(f32_to_bf16(bits.view(np.float32)), expected)


def test_shapes_and_layouts_are_kept(rng: np.random.Generator) -> None:
    values = rng.standard_normal((3, 5, 7), np.float32)
    bits = f32_to_bf16(values)
    assert bits.shape == (3, 5, 7)
    np.testing.assert_array_equal(f32_to_bf16(values.transpose(2, 0, 1)), bits.transpose(2, 0, 1))
    np.testing.assert_array_equal(bf16_to_f32(bits[:, ::2]), bf16_to_f32(bits)[:, ::2])
    assert f32_to_bf16(np.zeros((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_widen_gives_the_wanted_type_and_the_stored_numbers(dtype: type, rng: np.random.Generator) -> None:
    values = rng.standard_normal((3, 5)).astype(np.float32)
    bits = f32_to_bf16(values)
    for stored in (bits, values.astype(np.float16), values, values.astype(np.float64)):
        wide = widen(stored, np.dtype(dtype))
        exact = bf16_to_f32(stored) if stored is bits else stored
        assert wide.dtype == dtype
        np.testing.assert_array_equal(wide, exact.astype(dtype))


def test_widen_does_not_copy_what_has_the_type_already() -> None:
    values = np.ones(3, np.float32)
    assert widen(values, np.dtype(np.float32)) is values
    assert not np.shares_memory(widen(values, np.dtype(np.float64)), values)
