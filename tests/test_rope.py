"""Rotary positions: against the oracle, by the laws of rotation, and the table to the last digit."""

import numpy as np
import pytest
import small_models
from closeness import assert_close
from oracles import naive_ops

from pg2ref.config import parse_config
from pg2ref.model import gemma2
from pg2ref.model.backend import REFERENCE
from pg2ref.model.kv_cache import KVCache
from pg2ref.model.rope import FIRST_POSITION, rotate, rotation_table

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
THETA = 10000.0


@DTYPES
@pytest.mark.parametrize("head_dim", [2, 6, 10, 14, 16, 22])  # half of it odd as well as even
@pytest.mark.parametrize("theta", [THETA, 37.0])
def test_rotation_is_the_oracles(head_dim: int, theta: float, dtype: type, rng: np.random.Generator) -> None:
    positions_T = np.array([1, 2, 5, 17, 63])
    x_TNH = rng.standard_normal((5, 3, head_dim)).astype(dtype)
    exact = np.array(naive_ops.rotate(x_TNH.astype(float).tolist(), positions_T.tolist(), theta))
    turned_TNH = rotate(x_TNH, *rotation_table(positions_T, head_dim, theta, np.dtype(dtype)))
    assert turned_TNH.dtype == dtype
    assert_close(turned_TNH, exact, "rotate", terms=2)


@DTYPES
def test_every_pair_keeps_its_length(dtype: type, rng: np.random.Generator) -> None:
    x_TNH = rng.standard_normal((7, 3, 10)).astype(dtype)
    turned_TNH = rotate(x_TNH, *rotation_table(np.arange(7) * 911, 10, THETA, np.dtype(dtype)))
    lengths = [np.hypot(array[..., :5], array[..., 5:]) for array in (turned_TNH, x_TNH)]
    assert_close(*lengths, "rotate", terms=2)
    assert np.abs(turned_TNH - x_TNH)[1:].max() > 0.1  # it did turn


def test_products_depend_on_differences_alone(rng: np.random.Generator) -> None:
    query_H, key_H = rng.standard_normal((2, 1, 1, 14))

    def product(query_position: int, key_position: int) -> float:
        turned = [
            rotate(x, *rotation_table(np.array([position]), 14, THETA, np.dtype(np.float64)))
            for x, position in ((query_H[None], query_position), (key_H[None], key_position))
        ]
        return float((turned[0] * turned[1]).sum())

    for shift in (1, 3, 100, 4000):
        assert product(9 + shift, 4 + shift) == pytest.approx(product(9, 4), rel=1e-11)
    assert product(9, 4) != pytest.approx(product(9, 5), rel=1e-3)
    assert product(9, 4) != pytest.approx(product(4, 9), rel=1e-3)  # the direction counts


def test_position_zero_does_not_turn(rng: np.random.Generator) -> None:
    x_TNH = rng.standard_normal((1, 3, 6))
    table = rotation_table(np.array([0]), 6, THETA, np.dtype(np.float64))
    np.testing.assert_array_equal(rotate(x_TNH, *table), x_TNH)


def test_the_first_token_stands_at_position_one() -> None:
    """As in Transformers (modeling_paligemma.py); decoding goes on where the prompt ended."""
    config = parse_config(small_models.config_json(small_models.CASES["odd_heads"])).text
    float64 = np.dtype(np.float64)
    cache = KVCache(config, capacity_tokens=11, prefix_length=7, dtype=float64)
    first = gemma2.locate_rows(config, np.zeros((7, config.hidden_size)), [cache], "transformers", REFERENCE)
    cache.advance(7)
    later = gemma2.locate_rows(config, np.zeros((1, config.hidden_size)), [cache], "transformers", REFERENCE)
    assert FIRST_POSITION == 1
    for attention, positions in ((first, range(1, 8)), (later, [8])):
        cos_TR, sin_TR = rotation_table(np.array(positions), config.head_dim, config.rope_theta, float64)
        np.testing.assert_array_equal(attention.cos_TR, cos_TR)
        np.testing.assert_array_equal(attention.sin_TR, sin_TR)


@pytest.mark.parametrize("head_dim", [10, 128, 256])
@pytest.mark.parametrize("position", [1, 8000])
def test_the_table_is_exact_to_its_last_digit(head_dim: int, position: int) -> None:
    """float64 is off by the rounding of the angle, at most position * 2**-52 or so; float32 rounds that once."""
    exact_2R = np.array(
        [
            [float(number) for number in naive_ops.exact_cos_sin(position, r, head_dim, THETA)]
            for r in range(head_dim // 2)
        ]
    ).T
    angle_error = (2 + position) * 2.0**-52
    table_2R = np.stack(rotation_table(np.array([position]), head_dim, THETA, np.dtype(np.float64)))[:, 0]
    assert np.abs(table_2R - exact_2R).max() <= angle_error
    rounded_2R = np.stack(rotation_table(np.array([position]), head_dim, THETA, np.dtype(np.float32)))[:, 0]
    assert rounded_2R.dtype == np.float32
    half_a_place = 0.5 * np.spacing(np.abs(rounded_2R)).astype(np.float64)
    assert (np.abs(rounded_2R - exact_2R) <= half_a_place + angle_error).all()
