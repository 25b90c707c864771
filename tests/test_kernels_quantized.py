"""The integer kernels: against loops in float64, what rounding the inputs costs, and what must change nothing.

The same on every path of every processor: test_kernel_paths.py.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from closeness import BOUNDS, assert_close
from oracles import naive_ops, naive_quantized

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.kernels import quantized
from pg2ref.model import backend, ops
from pg2ref.model.backend import Ops
from pg2ref.quantized import QuantizedMatrix, quantize_matrix

TABLES: Mapping[str, Callable[[int], Ops]] = {
    "numpy": lambda bits: backend.operations("numpy", f"int{bits}"),
    "numba": lambda bits: backend.operations("numba", f"int{bits}"),
}
BLOCK_INPUTS = quantized.GROUPS_AT_ONCE * quantized.GROUP
# rows, outputs, inputs: one, two and many rows, tails of each, primes, and more inputs than a block of them
SHAPES = [(1, 1, 1), (1, 37, 97), (2, 16, 32), (3, 53, 31), (13, 17, 67), (29, 80, 131), (1, 18, BLOCK_INPUTS + 37)]


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def multiply(x_TD: Array, matrix: QuantizedMatrix, bias_O: Array | None = None) -> Array:
    return quantized.linear_each(x_TD, [matrix], [bias_O])[0]


def exact_linear(x_TD: Array, matrix: QuantizedMatrix, bias_O: Array | None = None) -> Array:
    """With rounded inputs, every sum in Python floats."""
    weights = naive_quantized.decode(*matrix)
    rounded = [naive_quantized.round_inputs(row) for row in x_TD]
    return np.array(naive_ops.linear(rounded, weights, None if bias_O is None else bias_O.tolist()))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(
    table: str, bits: int, with_bias: bool, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    rows, outputs, inputs = shape
    x_TD, matrix = normal(rng, rows, inputs), quantize_matrix(normal(rng, outputs, inputs), bits)
    bias_O = normal(rng, outputs) if with_bias else None
    out_TO = TABLES[table](bits).linear(x_TD, matrix, bias_O)
    assert out_TO.dtype == np.float32
    sums = inputs if table == "numpy" else -(-inputs // 32)
    assert_close(out_TO, exact_linear(x_TD, matrix, bias_O), "quantised linear", terms=sums + 3)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_of_inputs_costs_at_most_half_a_step_each(bits: int, rng: np.random.Generator) -> None:
    """An input is off by half of 1/127 of its group's largest, so a product by that times the weights' sizes."""
    x_TD, matrix = normal(rng, 5, 200) * np.exp(normal(rng, 1, 200)), quantize_matrix(normal(rng, 33, 200), bits)
    weights = naive_quantized.decode(*matrix)
    exact = np.array(naive_ops.linear(x_TD.tolist(), weights))
    most = np.array([naive_quantized.most_rounding_error(row, weights) for row in x_TD.tolist()])
    assert (np.abs(multiply(x_TD, matrix) - exact) / most).max() < BOUNDS["quantised inputs"].factor


def test_the_reference_rounds_inputs_as_the_oracle_does(rng: np.random.Generator) -> None:
    x_TD = normal(rng, 3, 75)
    x_TD[1, 32:64] = 0
    exact = np.array([naive_quantized.round_inputs(row) for row in x_TD])
    assert_close(ops.round_to_int8(x_TD), exact, "quantised linear", terms=1)
    assert (ops.round_to_int8(x_TD)[1, 32:64] == 0).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [2, 7, 16, 31])
def test_company_changes_nothing(bits: int, rows: int, rng: np.random.Generator) -> None:
    """Sequences that decode together get the numbers that they get alone."""
    x_TD, matrix = normal(rng, rows, 300), quantize_matrix(normal(rng, 67, 300), bits)
    together = multiply(x_TD, matrix)
    for t in range(rows):
        np.testing.assert_array_equal(multiply(x_TD[t : t + 1], matrix)[0], together[t])


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("length", [64, 160])
def test_rows_of_the_wrong_length_are_refused(table: str, bits: int, length: int) -> None:
    ops, matrix = TABLES[table](bits), quantize_matrix(np.ones((40, 128), np.float32), bits)
    for multiply in (ops.linear, lambda x, weight: ops.gated_linear(x, weight, weight)):
        with pytest.raises(ValueError, match=str(length)):
            multiply(np.ones((3, length), np.float32), matrix)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("code", [0, 255])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_the_largest_products(bits: int, code: int, rows: int, rng: np.random.Generator) -> None:
    """Every code the lowest or the highest that a byte can hold, every input a whole 127: no sum overflows."""
    matrix = quantize_matrix(normal(rng, 20, 96), bits)
    matrix = matrix._replace(codes=np.full_like(matrix.codes, code))
    x_TD = np.repeat(np.resize([1, -1, -1], (rows, 3)), 32, axis=1).astype(np.float32)
    assert_close(multiply(x_TD, matrix), exact_linear(x_TD, matrix), "quantised linear", terms=6)


@pytest.mark.parametrize("bits", [8, 4])
def test_read_only_codes_at_an_odd_address(bits: int, rng: np.random.Generator) -> None:
    """As in the map of a file whose header was not padded."""
    x_TD, matrix = normal(rng, 3, 70), quantize_matrix(normal(rng, 20, 70), bits)
    stored = b"x" + matrix.codes.tobytes() + matrix.scales.tobytes()
    data = np.frombuffer(stored, np.uint8)[1:]
    codes = data[: matrix.codes.nbytes].reshape(matrix.codes.shape)
    scales = data[matrix.codes.nbytes :].view(np.uint16).reshape(matrix.scales.shape)
    assert not scales.flags.aligned
    assert not codes.flags.writeable
    odd = QuantizedMatrix(codes, scales, matrix.shape, bits)
    np.testing.assert_array_equal(multiply(x_TD, odd), multiply(x_TD, matrix))


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_that_are_no_piece_of_memory(bits: int, rng: np.random.Generator) -> None:
    x_TD, matrix = normal(rng, 9, 140)[2::3, ::2], quantize_matrix(normal(rng, 20, 70), bits)
    np.testing.assert_array_equal(multiply(x_TD, matrix), multiply(np.ascontiguousarray(x_TD), matrix))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_comes_out_as_nan(bits: int, bad: float, rng: np.random.Generator) -> None:
    x_TD, matrix = normal(rng, 3, 70), quantize_matrix(normal(rng, 20, 70), bits)
    good = multiply(x_TD, matrix)
    x_TD[1, 69] = bad
    out_TO = multiply(x_TD, matrix)
    assert np.isnan(out_TO[1]).all()
    np.testing.assert_array_equal(out_TO[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_that_is_not_finite_comes_out_as_nan(bits: int, rng: np.random.Generator) -> None:
    """No scale that `quantize_matrix` writes is one, but a file may hold anything."""
    x_TD, matrix = normal(rng, 3, 70), quantize_matrix(normal(rng, 20, 70), bits)
    matrix.scales[1, 2, 3] = f32_to_bf16(np.array([np.nan], np.float32))[0]
    assert np.isnan(multiply(x_TD, matrix)).sum(axis=0).tolist() == [3 * (output == 19) for output in range(20)]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-32, 1e-20, 1e20, 1e35])
def test_very_small_and_very_large_inputs(table: str, size: float, rng: np.random.Generator) -> None:
    """Of which the smallest count as 0, as nothing they could be added to would notice them."""
    unit, matrix = np.sign(normal(rng, 2, 64)), quantize_matrix(normal(rng, 17, 64) / 8, 8)
    x_TD = (unit * size).astype(np.float32)
    out_TO = TABLES[table](8).linear(x_TD, matrix)
    exact = exact_linear(unit, matrix)
    assert_close(out_TO / np.float32(size), exact if size > 1e-30 else 0 * exact, "quantised linear", terms=5)


def test_all_zero_inputs_give_the_bias(rng: np.random.Generator) -> None:
    matrix, bias_O = quantize_matrix(normal(rng, 20, 70), 4), f32_to_bf16(normal(rng, 20))
    out_TO = multiply(np.zeros((2, 70), np.float32), matrix, bias_O)
    np.testing.assert_array_equal(out_TO, np.tile((bias_O.astype(np.uint32) << 16).view(np.float32), (2, 1)))


@pytest.mark.parametrize("table", TABLES)
def test_plain_matrices_take_the_way_of_bf16(table: str, rng: np.random.Generator) -> None:
    x_TD, weight = normal(rng, 3, 70), f32_to_bf16(normal(rng, 20, 70))
    expected = backend.operations(table, "bf16").linear(x_TD, weight)
    np.testing.assert_array_equal(TABLES[table](4).linear(x_TD, weight), expected)
