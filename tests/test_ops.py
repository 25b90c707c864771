"""Every operation of every table against the oracle, in float32 and float64: not "equal to each other" but "right".

A table joins the tests by a line in BACKENDS. The oracle of a bf16 table is given what that table reads: numbers that
are rounded to bf16 already. Sums are float32 there too, so the bounds are the same.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from closeness import BOUNDS, assert_close
from oracles import naive_ops

from pg2ref import policy
from pg2ref.arrays import Array, bf16_to_f32, f32_to_bf16, widen
from pg2ref.errors import UsageError
from pg2ref.kernels import elementwise, thin
from pg2ref.model import backend, masks, rope
from pg2ref.model import ops as reference_ops
from pg2ref.model.backend import REFERENCE, REFERENCE_BF16, Ops
from pg2ref.model.masks import KeyRanges

BACKENDS: Mapping[str, Ops] = {
    "numpy": REFERENCE,
    "numba": backend.fast("f32"),
    "numpy bf16": REFERENCE_BF16,
    "numba bf16": backend.fast("bf16"),
}
BF16_TABLES = (BACKENDS["numpy bf16"], BACKENDS["numba bf16"])  # those that round what linear and attend read
DTYPES = {name: (np.float32,) if "numba" in name else (np.float32, np.float64) for name in BACKENDS}
EPS = 1e-6
SEVERAL = ("linear_each", "to_bf16", "attention_weights", "rotation_table")  # other than one array of the input's type
SINGLE = [name for name in Ops._fields if name not in SEVERAL]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each table in each of its precisions, where a test asks for them."""
    if "ops" in metafunc.fixturenames and "dtype" in metafunc.fixturenames:
        pairs = [(table, np.dtype(kind)) for table, kinds in DTYPES.items() for kind in kinds]
        values = [pytest.param(BACKENDS[table], kind, id=f"{table}-{kind}") for table, kind in pairs]
        metafunc.parametrize(("ops", "dtype"), values)
    elif "ops" in metafunc.fixturenames:
        metafunc.parametrize("ops", BACKENDS.values(), ids=BACKENDS)
    elif "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)


def lists(array: Array) -> Any:
    """For the oracle: nested lists of Python floats."""
    return array.astype(np.float64).tolist()


def unaligned(array: Array) -> Array:
    """The same numbers at an odd address, as in a file whose header was not padded."""
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    buffer[1:] = array.reshape(-1).view(np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    assert not view.flags.aligned
    return view


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


STORES: Mapping[str, Callable[[Array], Array]] = {
    "bf16": f32_to_bf16,
    "f16": lambda values: values.astype(np.float16),
    "f32": lambda values: values.astype(np.float32),
    "f64": lambda values: values.astype(np.float64),
    "bf16 of a file": lambda values: read_only(unaligned(f32_to_bf16(values))),
    "f32 of a file": lambda values: read_only(unaligned(values.astype(np.float32))),
    "f16 of a file": lambda values: read_only(unaligned(values.astype(np.float16))),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Callable[[Array], Array]:
    return STORES[request.param]


def stored_values(weight: Array) -> Array:
    """What the stored weight means, exactly."""
    return (bf16_to_f32(weight) if weight.dtype == np.uint16 else weight).astype(np.float64)


def as_read(ops: Ops, values: Array) -> Array:
    """Numbers as linear layers and attention of a table read them: in a bf16 table, rounded to bf16."""
    return bf16_to_f32(f32_to_bf16(values)).astype(np.float64) if ops in BF16_TABLES else values.astype(np.float64)


def weight_values(ops: Ops, weight: Array) -> Array:
    """What a table reads of a stored matrix."""
    return as_read(ops, stored_values(weight))


# Linear layers.


@pytest.mark.parametrize("rows", [1, 5, 19])
@pytest.mark.parametrize("inputs", [13, 128])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(
    ops: Ops, dtype: Any, store: Any, rows: int, inputs: int, with_bias: bool, rng: np.random.Generator
) -> None:
    """Few rows and many; outputs of a panel and of a part of one."""
    x_TD = rng.standard_normal((rows, inputs)).astype(dtype)
    weight_OD = store(rng.standard_normal((37, inputs), np.float32))
    bias_O = store(rng.standard_normal(37, np.float32)) if with_bias else None
    bias = None if bias_O is None else stored_values(bias_O).tolist()
    exact = np.array(naive_ops.linear(lists(as_read(ops, x_TD)), weight_values(ops, weight_OD).tolist(), bias))
    out_TO = ops.linear(x_TD, weight_OD, bias_O)
    assert out_TO.dtype == dtype
    assert_close(out_TO, exact, "linear", terms=inputs)


@pytest.mark.parametrize("block", [1, 12, 13, 3 * 13, 4 * 13 + 5, 10 * 13, 11 * 13, 1 << 20])
@pytest.mark.parametrize("run", [1, 5, 12, 13, 14])
def test_linear_works_in_blocks_and_runs(
    ops: Ops, dtype: Any, block: int, run: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(reference_ops, "BLOCK_WEIGHTS", block)
    monkeypatch.setattr(reference_ops, "RUN", run)
    x_TD = rng.standard_normal((3, 13)).astype(dtype)
    weight_OD = f32_to_bf16(rng.standard_normal((11, 13), np.float32))
    bias_O = f32_to_bf16(rng.standard_normal(11, np.float32))
    bias = stored_values(bias_O).tolist()
    exact = np.array(naive_ops.linear(lists(as_read(ops, x_TD)), weight_values(ops, weight_OD).tolist(), bias))
    assert_close(ops.linear(x_TD, weight_OD, bias_O), exact, "linear", terms=13)


def test_linear_sums_many_numbers(ops: Ops, dtype: Any, rng: np.random.Generator) -> None:
    x_TD = rng.standard_normal((2, 2309)).astype(dtype)
    weight_OD = f32_to_bf16(rng.standard_normal((17, 2309), np.float32))
    exact = np.array(naive_ops.linear(lists(as_read(ops, x_TD)), weight_values(ops, weight_OD).tolist()))
    assert_close(ops.linear(x_TD, weight_OD), exact, "linear", terms=2309)


def test_linear_of_a_view(ops: Ops, dtype: Any, rng: np.random.Generator) -> None:
    """Rows that are no contiguous piece of memory, as the last row of each of several sequences."""
    x_TD = rng.standard_normal((9, 13)).astype(dtype)[2::3]
    weight_OD = f32_to_bf16(rng.standard_normal((7, 26), np.float32))[:, ::2]
    exact = np.array(naive_ops.linear(lists(as_read(ops, x_TD)), weight_values(ops, weight_OD).tolist()))
    assert_close(ops.linear(x_TD, weight_OD), exact, "linear", terms=13)


@pytest.mark.parametrize("shape", [(1, 7), (5, 3, 7), (3, 40_001), (0, 2, 3)])
def test_to_bf16(ops: Ops, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """Bit for bit what arrays.py does, for every kind of number."""
    values = rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)
    np.testing.assert_array_equal(ops.to_bf16(values), f32_to_bf16(values))


# Norms.


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("eps", [EPS, 0.02])
def test_rms_norm(ops: Ops, dtype: Any, store: Any, rows: int, eps: float, rng: np.random.Generator) -> None:
    x_TD = (3 * rng.standard_normal((rows, 17)) + 0.5).astype(dtype)
    scale_D = store(rng.standard_normal(17, np.float32))
    exact = np.array(naive_ops.rms_norm(lists(x_TD), stored_values(scale_D).tolist(), eps))
    out_TD = ops.rms_norm(x_TD, scale_D, eps)
    assert out_TD.dtype == dtype
    assert_close(out_TD, exact, "rms_norm", terms=17)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("eps", [EPS, 0.02])
def test_layer_norm(ops: Ops, dtype: Any, store: Any, rows: int, eps: float, rng: np.random.Generator) -> None:
    x_TE = (3 * rng.standard_normal((rows, 17)) + 0.5).astype(dtype)
    scale_E, bias_E = (store(rng.standard_normal(17, np.float32)) for _ in range(2))
    exact = np.array(
        naive_ops.layer_norm(lists(x_TE), stored_values(scale_E).tolist(), stored_values(bias_E).tolist(), eps)
    )
    out_TE = ops.layer_norm(x_TE, scale_E, bias_E, eps)
    assert out_TE.dtype == dtype
    assert_close(out_TE, exact, "layer_norm", terms=17)


@pytest.mark.parametrize("magnitude", [0.0, 1e-41, 1e-30, 1e-3, 1e4, 1e15])
def test_norms_of_very_small_and_large_rows(ops: Ops, dtype: Any, magnitude: float, rng: np.random.Generator) -> None:
    """Under eps the result shrinks with the row; zeros and denormals stay finite."""
    x_TD = (magnitude * rng.standard_normal((3, 11))).astype(dtype)
    scale_D, bias_D = rng.standard_normal((2, 11)).astype(np.float32)
    zeros = [0.0] * 11
    exact = np.array(naive_ops.rms_norm(lists(x_TD), lists(scale_D), EPS))
    assert_close(ops.rms_norm(x_TD, scale_D, EPS), exact, "rms_norm", terms=11)
    exact = np.array(naive_ops.layer_norm(lists(x_TD), lists(scale_D), zeros, EPS))
    assert_close(ops.layer_norm(x_TD, scale_D, np.zeros(11, np.float32), EPS), exact, "layer_norm", terms=11)
    if magnitude == 0:
        np.testing.assert_array_equal(ops.layer_norm(x_TD, scale_D, bias_D, EPS), np.tile(bias_D.astype(dtype), (3, 1)))


def test_layer_norm_of_a_row_far_from_zero(ops: Ops, dtype: Any, rng: np.random.Generator) -> None:
    """The variance is that of the centred row: the difference of two large sums would have lost it."""
    x_TE = (4096 + rng.integers(-8, 9, (3, 19)) / 8).astype(dtype)  # exact in both types
    scale_E, bias_E = rng.standard_normal((2, 19)).astype(np.float32)
    exact = np.array(naive_ops.layer_norm(lists(x_TE), lists(scale_E), lists(bias_E), EPS))
    error = np.abs(ops.layer_norm(x_TE, scale_E, bias_E, EPS) - exact).max()
    assert error < 4096 * np.finfo(dtype).eps * 8  # the mean is rounded where the row lies


# Activations and the soft cap.

SPREAD = np.concatenate([-np.geomspace(12, 1e-42, 47), [0.0], np.geomspace(1e-42, 12, 47)])


def test_gelu(ops: Ops, dtype: Any, rng: np.random.Generator) -> None:
    x = SPREAD.astype(dtype)
    exact = np.array([naive_ops.gelu(number) for number in lists(x)])
    out = ops.gelu(x)
    assert out.dtype == dtype
    assert_close(out, exact, "gelu", terms=1)
    near = np.abs(x) < 1  # again where the results are small
    assert_close(out[near], exact[near], "gelu", terms=1)
    x_TF = (2 * rng.standard_normal((5, 7))).astype(dtype)
    exact = np.vectorize(naive_ops.gelu)(x_TF.astype(np.float64))
    assert_close(ops.gelu(x_TF), exact, "gelu", terms=1)


def test_gelu_is_the_tanh_form(ops: Ops, dtype: Any) -> None:
    """The exact form, by erf, gives 0.841344746 and -0.000005... here: 2e-4 apart."""
    x = np.array([1.0, -3.0, 1e4, -1e4, 3e38, -3e38], dtype)
    np.testing.assert_allclose(ops.gelu(x), [0.8411919906, -0.0036373920, 1e4, 0.0, 3e38, 0.0], rtol=2e-5)


@pytest.mark.parametrize("rows", [1, 5])
def test_gated_gelu(ops: Ops, dtype: Any, rows: int, rng: np.random.Generator) -> None:
    gate_TF, up_TF = (2 * rng.standard_normal((2, rows, 11))).astype(dtype)
    out_TF = (elementwise if "kernels" in ops.gelu.__module__ else reference_ops).gated_gelu(gate_TF, up_TF)
    assert out_TF.dtype == dtype
    assert_close(out_TF, np.array(naive_ops.gated_gelu(lists(gate_TF), lists(up_TF))), "gated_gelu", terms=1)


@pytest.mark.parametrize(("rows", "inputs", "rank", "outputs"), [(1, 13, 1, 5), (3, 128, 8, 1027), (19, 1301, 3, 37)])
@pytest.mark.parametrize("has_gain_and_bias", [False, True])
def test_add_thin(
    ops: Ops, dtype: Any, store: Any, rows: int, inputs: int, rank: int, outputs: int, has_gain_and_bias: bool, rng: Any
) -> None:
    """Against float64, whose own rounding is far below; the sum of `inputs` products is what rounds."""
    x_TD, out_TO = rng.standard_normal((rows, inputs)).astype(dtype), rng.standard_normal((rows, outputs)).astype(dtype)
    down_RD = (rng.standard_normal((rank, inputs)) * inputs**-0.5).astype(np.float32)
    up_RO = rng.standard_normal((rank, outputs)).astype(np.float32)
    gain_O = rng.uniform(0.5, 2, outputs).astype(np.float32) if has_gain_and_bias else None
    bias_O = store(rng.standard_normal(outputs, np.float32)) if has_gain_and_bias else None
    exact_TO = x_TD.astype(np.float64) @ down_RD.T.astype(np.float64) @ up_RO
    exact_TO += out_TO if gain_O is None else out_TO * gain_O.astype(np.float64) + widen(bias_O, np.dtype(np.float64))
    add_thin = thin.add_thin if "kernels" in ops.gelu.__module__ else reference_ops.add_thin
    found_TO = add_thin(out_TO, x_TD, down_RD, up_RO, gain_O, bias_O)
    assert found_TO is out_TO
    assert found_TO.dtype == dtype
    assert_close(found_TO, exact_TO, "add_thin", inputs)


@pytest.mark.parametrize("rows", [1, 5, 17, 41])
@pytest.mark.parametrize("inputs", [13, 128, 1301])
def test_gated_linear(ops: Ops, dtype: Any, store: Any, rows: int, inputs: int, rng: np.random.Generator) -> None:
    """Few rows and many, inputs of one block and of more, outputs that fill no panel."""
    x_TD = rng.standard_normal((rows, inputs)).astype(dtype)
    gate_FD, up_FD = (store(rng.standard_normal((37, inputs), np.float32) * inputs**-0.5) for _ in range(2))
    gate_TF, up_TF = (as_read(ops, x_TD) @ weight_values(ops, weight).T for weight in (gate_FD, up_FD))
    exact = np.array(naive_ops.gated_gelu(gate_TF.tolist(), up_TF.tolist()))
    magnitude = float(np.abs(gate_TF).max() * np.abs(up_TF).max())
    assert_close(ops.gated_linear(x_TD, gate_FD, up_FD), exact, "gated_linear", inputs, magnitude)


@pytest.mark.parametrize("rows", [1, 3, 19])
@pytest.mark.parametrize("inputs", [13, 128])
def test_linear_each_is_linear_for_each(
    ops: Ops, dtype: Any, store: Any, rows: int, inputs: int, rng: np.random.Generator
) -> None:
    x_TD = rng.standard_normal((rows, inputs)).astype(dtype)
    weights = [store(rng.standard_normal((outputs, inputs), np.float32)) for outputs in (7, 70, 1)]
    biases = [store(rng.standard_normal(7, np.float32)), None, store(rng.standard_normal(1, np.float32))]
    for given in (None, biases):
        together = ops.linear_each(x_TD, weights, given)
        for out_TO, weight_OD, bias_O in zip(together, weights, given or [None] * 3, strict=True):
            np.testing.assert_array_equal(out_TO, ops.linear(x_TD, weight_OD, bias_O))


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("length", [0, 64, 127, 129, 160])
def test_rows_of_the_wrong_length_are_refused(ops: Ops, dtype: Any, store: Any, rows: int, length: int) -> None:
    x_TD, weight_OD = np.ones((rows, length), dtype), store(np.ones((40, 128), np.float32))
    for multiply in (ops.linear, lambda x, weight: ops.gated_linear(x, weight, weight)):
        with pytest.raises(ValueError, match=str(length)):
            multiply(x_TD, weight_OD)


@pytest.mark.parametrize("cap", [None, 0.5, 5.0, 50.0])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 5)])
def test_soft_cap(ops: Ops, dtype: Any, cap: float | None, shape: Any, rng: np.random.Generator) -> None:
    logits = (9 * rng.standard_normal(shape)).astype(dtype)
    exact = np.vectorize(lambda number: naive_ops.soft_cap(number, cap))(logits.astype(np.float64))
    out = ops.soft_cap(logits, cap)
    assert out.dtype == dtype
    assert_close(out, exact, "soft_cap", terms=1)
    if cap is None:
        np.testing.assert_array_equal(out, logits)


def test_a_saturated_cap(ops: Ops, dtype: Any) -> None:
    largest = float(np.finfo(np.float32).max)
    logits = np.array([1e4, -1e4, largest, -largest, 1e-42, 0.0], dtype)
    np.testing.assert_array_equal(ops.soft_cap(logits, 5.0)[:4], [5, -5, 5, -5])
    np.testing.assert_allclose(ops.soft_cap(logits, 5.0)[4:], logits[4:], rtol=0, atol=2e-45)


def test_a_soft_cap_keeps_the_order(ops: Ops, dtype: Any) -> None:
    logits = np.linspace(-20, 20, 97).astype(dtype)
    assert (np.diff(ops.soft_cap(logits, 30.0)) > 0).all()


# Rotation: more in test_rope.py.


@pytest.mark.parametrize("rows", [1, 5])
def test_rotate(ops: Ops, dtype: Any, rows: int, rng: np.random.Generator) -> None:
    positions_T = np.array([1, 4, 5, 111, 700])[-rows:]
    x_TNH = rng.standard_normal((rows, 3, 14)).astype(dtype)
    out_TNH = ops.rotate(x_TNH, *rope.rotation_table(positions_T, 14, 10000.0, dtype))
    assert out_TNH.dtype == dtype
    exact = np.array(naive_ops.rotate(lists(x_TNH), positions_T.tolist(), 10000.0))
    assert_close(out_TNH, exact, "rotate", terms=2)


# Attention.

MASKS: Mapping[str, Callable[[int, int], KeyRanges]] = {
    "everything": masks.everything,
    "causal": lambda T, S: masks.prefix_lm(np.arange(S - T, S), prefix_length=0),
    "prefix": lambda T, S: masks.prefix_lm(np.arange(S - T, S), prefix_length=S - T // 2),
    "window 3": lambda T, S: masks.prefix_lm(np.arange(S - T, S), prefix_length=S - T // 2, window=3),
    "keras window 3": lambda T, S: masks.prefix_lm(np.arange(S - T, S), prefix_length=S, window=3, policy="keras"),
    "one key": lambda T, S: KeyRanges((np.arange(T) * 5) % S, (np.arange(T) * 5) % S),
    "first key": lambda T, S: KeyRanges(np.zeros(T, np.int64), np.zeros(T, np.int64)),
    "last key": lambda T, S: KeyRanges(np.full(T, S - 1), np.full(T, S - 1)),
}


def attend_case(rng: np.random.Generator, dtype: Any, *, T: int, S: int, K: int, G: int, H: int) -> tuple[Array, ...]:
    shapes = ((T, K * G, H), (S, K, H), (S, K, H))
    return tuple((1.5 * rng.standard_normal(shape)).astype(dtype) for shape in shapes)


def assert_attends(
    ops: Ops,
    out_TNH: Array,
    arrays: tuple[Array, ...],
    ranges: KeyRanges,
    scale: float,
    cap: float | None,
    *,
    is_sharp: bool = False,
) -> None:
    """Against the oracle. In a bf16 table weights are rounded too, and one near the middle may fall to either side.

    Near: as near as float32 arithmetic decides, by the bound of `attend` times the largest score. Where scores are
    large (`is_sharp`), a weight's own error is that bound times the largest score in every table.
    """
    query, key, value = (as_read(ops, array) for array in arrays)
    (_, N, H), (S, K, _) = query.shape, key.shape
    allowed, lists_of = ranges.allowed_TS(S).tolist(), (lists(query), lists(key), lists(value))
    scores = scale * np.abs(np.einsum("tnh,snh->tns", query, key.repeat(N // K, axis=1)))
    largest_score = max(1.0, float(scores.max()))
    if ops in BF16_TABLES:
        noise = BOUNDS["attend"].factor * np.finfo(out_TNH.dtype).eps * np.sqrt(H + S) * largest_score
        least, most = naive_ops.attend_bf16(*lists_of, allowed, scale=scale, logit_cap=cap, noise=float(noise))
        exact = np.clip(out_TNH, np.array(least), np.array(most))
    else:
        exact = np.array(naive_ops.attend(*lists_of, allowed, scale=scale, logit_cap=cap))
    magnitude = largest_score * float(np.abs(value).max()) if is_sharp else None
    assert_close(out_TNH, exact, "attend", terms=H + S, magnitude=magnitude)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("logit_cap", [None, 0.7, 50.0])
@pytest.mark.parametrize("T", [1, 5])
def test_attend(ops: Ops, dtype: Any, mask: str, logit_cap: float | None, T: int, rng: np.random.Generator) -> None:
    query, key, value = attend_case(rng, dtype, T=T, S=11, K=2, G=3, H=7)
    ranges = MASKS[mask](T, 11)
    out_TNH = ops.attend(query, key, value, *ranges, scale=0.3, logit_cap=logit_cap)
    assert out_TNH.dtype == dtype
    assert_attends(ops, out_TNH, (query, key, value), ranges, 0.3, logit_cap)


@pytest.mark.parametrize(("K", "G"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_attend_groups_of_heads(ops: Ops, dtype: Any, K: int, G: int, rng: np.random.Generator) -> None:
    query, key, value = attend_case(rng, dtype, T=4, S=7, K=K, G=G, H=5)
    ranges = masks.prefix_lm(np.arange(3, 7), prefix_length=0)
    out_TNH = ops.attend(query, key, value, *ranges, scale=1.0, logit_cap=None)
    assert_attends(ops, out_TNH, (query, key, value), ranges, 1.0, None)


@pytest.mark.parametrize(("T", "S", "H"), [(1, 131, 64), (17, 131, 64), (67, 71, 5), (131, 131, 24)])
@pytest.mark.parametrize("scale", [0.1, 30.0])
@pytest.mark.parametrize("logit_cap", [None, 50.0])
def test_attend_in_blocks(
    ops: Ops, dtype: Any, T: int, S: int, H: int, scale: float, logit_cap: float | None, rng: np.random.Generator
) -> None:
    """More rows than a block, more keys than a panel; with the large scale caps saturate and weights underflow."""
    query, key, value = attend_case(rng, dtype, T=T, S=S, K=1, G=2, H=H)
    ranges = masks.prefix_lm(np.arange(S - T, S), prefix_length=S // 2, window=29)
    out_TNH = ops.attend(query, key, value, *ranges, scale=scale, logit_cap=logit_cap)
    assert_attends(ops, out_TNH, (query, key, value), ranges, scale, logit_cap, is_sharp=scale > 1)


def test_keys_that_weigh_too_little(ops: Ops, dtype: Any) -> None:
    """The exponential of less than -87 may count as that of -87: of 3 such keys, less than 6e-38 of their value."""
    query, key = np.full((2, 1, 2), 8.0, dtype), np.array([[[8.0, 8]], [[-8, -8]], [[-8, -7.0]], [[-8, 8]]], dtype)
    value = np.array([[[1.0, -2.0]], [[1e30, 1e30]], [[-1e30, 1e30]], [[1e30, -1e30]]], dtype)
    out = ops.attend(query, key, value, *masks.everything(2, 4), scale=10.0, logit_cap=None)
    np.testing.assert_allclose(out, np.broadcast_to([1.0, -2.0], (2, 1, 2)), rtol=0, atol=6e-8)


def test_attend_reads_a_cache(ops: Ops, dtype: Any, rng: np.random.Generator) -> None:
    """Keys and values are views into a larger array, of rows that lie apart."""
    query, key, value = attend_case(rng, dtype, T=3, S=7, K=2, G=2, H=5)
    room = rng.standard_normal((2, 13, 4, 5)).astype(dtype)
    room[0, :7, ::2], room[1, :7, ::2] = key, value
    ranges = masks.prefix_lm(np.arange(4, 7), prefix_length=2, window=4)
    whole = ops.attend(query, key, value, *ranges, scale=0.5, logit_cap=2.0)
    viewed = ops.attend(query, room[0, :7, ::2], room[1, :7, ::2], *ranges, scale=0.5, logit_cap=2.0)
    assert_close(viewed, whole, "attend", terms=5 + 7)


def test_attend_reads_a_cache_of_bf16(ops: Ops, dtype: Any, rng: np.random.Generator) -> None:
    """Keys and values stored in bf16 are what they stand for; a bf16 table would have rounded to it anyway."""
    for rows in (1, 3):
        query, key, value = attend_case(rng, dtype, T=rows, S=7, K=2, G=2, H=5)
        stored = [f32_to_bf16(array) for array in (key, value)]
        meant = [bf16_to_f32(array).astype(dtype) for array in stored]
        ranges = masks.prefix_lm(np.arange(7 - rows, 7), prefix_length=2, window=4)
        expected = ops.attend(query, *meant, *ranges, scale=0.5, logit_cap=2.0)
        np.testing.assert_array_equal(ops.attend(query, *stored, *ranges, scale=0.5, logit_cap=2.0), expected)


def test_what_is_masked_does_not_matter(ops: Ops, dtype: Any, rng: np.random.Generator) -> None:
    """Not even when its score is the largest by far, and whatever its value."""
    query, key, value = attend_case(rng, dtype, T=3, S=7, K=1, G=2, H=5)
    ranges = masks.prefix_lm(np.arange(2, 5), prefix_length=0, window=2)
    expected = ops.attend(query, key, value, *ranges, scale=1.0, logit_cap=None)
    key[[0, 5, 6]] *= 1e4
    value[[0, 5, 6]] = 1e30
    np.testing.assert_array_equal(ops.attend(query, key, value, *ranges, scale=1.0, logit_cap=None), expected)


def rounded_weights(ops: Ops) -> float:
    """Relative error that rounding the weights of attention may cause: half a step of bf16."""
    return 2.0**-8 if ops in BF16_TABLES else 1e-6


@pytest.mark.parametrize("logit_cap", [None, 50.0])
def test_huge_scores_do_not_overflow(ops: Ops, dtype: Any, logit_cap: float | None) -> None:
    """Scores of 1e4 and -1e4, exact in both types: all weight on the largest, halves on two equals."""
    query = np.array([[[100.0]], [[-100.0]], [[100.0]]], dtype)
    key = np.array([[[100.0]], [[-100.0]], [[0.0]], [[100.0]]], dtype)
    value = np.array([[[1.0]], [[2.0]], [[4.0]], [[8.0]]], dtype)
    ranges = KeyRanges(np.array([0, 0, 1]), np.array([3, 3, 2]))
    out = ops.attend(query, key, value, *ranges, scale=1.0, logit_cap=logit_cap)
    np.testing.assert_allclose(out[:, 0, 0], [4.5, 2.0, 4.0], rtol=1e-6)


def test_huge_scores_that_are_all_negative(ops: Ops, dtype: Any) -> None:
    """A row whose largest score is -1e4 still weighs its keys by differences."""
    query, key = np.full((1, 1, 1), -100.0, dtype), np.full((3, 1, 1), 100.0, dtype)
    value = np.array([[[3.0]], [[6.0]], [[9.0]]], dtype)
    out = ops.attend(query, key, value, *masks.everything(1, 3), scale=1.0, logit_cap=None)
    np.testing.assert_allclose(out, [[[6.0]]], rtol=rounded_weights(ops))


def test_a_cap_comes_after_the_scale(ops: Ops, dtype: Any) -> None:
    """Scale 0.25 of 16 is 4, capped at 4: 4 tanh(1). The other order would give 4 * 0.25 * tanh(4)."""
    query, key = np.full((1, 1, 1), 4.0, dtype), np.array([[[4.0]], [[0.0]]], dtype)
    value = np.array([[[1.0]], [[0.0]]], dtype)
    out = ops.attend(query, key, value, *masks.everything(1, 2), scale=0.25, logit_cap=4.0)
    np.testing.assert_allclose(out, [[[1 / (1 + np.exp(-4 * np.tanh(1.0)))]]], rtol=rounded_weights(ops))


@pytest.mark.parametrize("logit_cap", [None, 0.7])
def test_attention_weights_are_those_of_attend(
    ops: Ops, dtype: Any, logit_cap: float | None, rng: np.random.Generator
) -> None:
    case = attend_case(rng, dtype, T=5, S=11, K=2, G=3, H=7)
    query, key, value = (bf16_to_f32(f32_to_bf16(array)).astype(dtype) for array in case)
    ranges = MASKS["window 3"](5, 11)
    weights_NTS = ops.attention_weights(query, key, *ranges, scale=0.3, logit_cap=logit_cap)
    assert weights_NTS.shape == (6, 5, 11)
    assert weights_NTS.dtype == dtype
    allowed_TS = ranges.allowed_TS(11)
    assert (weights_NTS[:, ~allowed_TS] == 0).all()  # exactly
    assert (weights_NTS[:, allowed_TS] > 0).all()
    np.testing.assert_allclose(weights_NTS.sum(-1), 1, rtol=1e-6)
    heads = np.stack([weights_NTS[n] @ value[:, n // 3] for n in range(6)], axis=1).astype(dtype)
    assert_close(heads, REFERENCE.attend(query, key, value, *ranges, scale=0.3, logit_cap=logit_cap), "attend", 18)


@pytest.mark.parametrize(("T", "S", "H"), [(1, 131, 64), (67, 71, 5), (131, 131, 24)])
@pytest.mark.parametrize("logit_cap", [None, 5.0])
def test_attention_weights_in_blocks(
    ops: Ops, dtype: Any, T: int, S: int, H: int, logit_cap: float | None, rng: np.random.Generator
) -> None:
    """More rows than a block, more keys than a panel, ranges that begin and end inside one; never rounded to bf16."""
    query, key, _ = attend_case(rng, dtype, T=T, S=S, K=2, G=2, H=H)
    ranges = masks.prefix_lm(np.arange(S - T, S), prefix_length=S // 2, window=29)
    weights_NTS = ops.attention_weights(query, key, *ranges, scale=0.1, logit_cap=logit_cap)
    exact = (query.astype(np.float64), key.astype(np.float64))
    expected_NTS = reference_ops.attention_weights(*exact, *ranges, scale=0.1, logit_cap=logit_cap)
    np.testing.assert_allclose(weights_NTS, expected_NTS, rtol=100 * np.finfo(dtype).eps)
    bits = f32_to_bf16(key.astype(np.float32))
    stored, meant = (
        ops.attention_weights(query, keys, *ranges, scale=0.1, logit_cap=logit_cap)
        for keys in (bits, bf16_to_f32(bits).astype(dtype))
    )
    np.testing.assert_array_equal(stored, meant)  # as a cache of bf16 gives them


def test_softmax_row_by_row(dtype: Any, rng: np.random.Generator) -> None:
    scores_TS = (5 * rng.standard_normal((3, 7))).astype(dtype)
    scores_TS[0, 2:4] = -np.inf
    exact = [naive_ops.softmax(row, [score > -np.inf for score in row]) for row in lists(scores_TS)]
    out_TS = reference_ops.softmax(scores_TS)
    assert_close(out_TS, np.array(exact), "softmax", terms=7)
    assert (out_TS[0, 2:4] == 0).all()


# What holds for all of them.


def calls(rng: np.random.Generator, dtype: Any) -> dict[str, tuple[list[Any], dict[str, Any], tuple[int, ...]]]:
    """Arguments of every operation, and the shape of its result."""
    x_TD = rng.standard_normal((5, 7)).astype(dtype)
    weight_OD = f32_to_bf16(rng.standard_normal((3, 7), np.float32))
    scale_D, bias_D, bias_O = (f32_to_bf16(rng.standard_normal(n, np.float32)) for n in (7, 7, 3))
    table = rope.rotation_table(np.arange(5), 14, 100.0, dtype)
    attended = [*attend_case(rng, dtype, T=5, S=11, K=2, G=3, H=7), *MASKS["window 3"](5, 11)]
    return {
        "linear": ([x_TD, weight_OD, bias_O], {}, (5, 3)),
        "rms_norm": ([x_TD, scale_D, EPS], {}, (5, 7)),
        "layer_norm": ([x_TD, scale_D, bias_D, EPS], {}, (5, 7)),
        "gelu": ([x_TD], {}, (5, 7)),
        "gated_linear": ([x_TD, weight_OD, weight_OD[::-1]], {}, (5, 3)),
        "soft_cap": ([x_TD, 2.0], {}, (5, 7)),
        "rotate": ([rng.standard_normal((5, 3, 14)).astype(dtype), *table], {}, (5, 3, 14)),
        "attend": (attended, {"scale": 0.5, "logit_cap": 3.0}, (5, 6, 7)),
        "add": ([x_TD, x_TD[::-1].copy()], {}, (5, 7)),
        "scale": ([x_TD, 59.87], {}, (5, 7)),
    }


@pytest.mark.parametrize("name", SINGLE)
def test_type_and_shape_are_kept_and_inputs_left_alone(
    ops: Ops, dtype: Any, name: str, rng: np.random.Generator
) -> None:
    arguments, options, shape = calls(rng, dtype)[name]
    before = [argument.copy() if isinstance(argument, np.ndarray) else argument for argument in arguments]
    first = getattr(ops, name)(*arguments, **options)
    assert first.dtype == dtype
    assert first.shape == shape
    for argument, old in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(argument, old)
        if isinstance(argument, np.ndarray):
            assert not np.shares_memory(first, argument)
            argument.flags.writeable = False  # as the views of a checkpoint are
    np.testing.assert_array_equal(getattr(ops, name)(*arguments, **options), first)


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_row_is_the_same_as_in_company(ops: Ops, dtype: Any, name: str, rng: np.random.Generator) -> None:
    """Rows do not touch each other; in attention, queries do not."""
    arguments, options, _ = calls(rng, dtype)[name]
    together = getattr(ops, name)(*arguments, **options)
    by_row = {"rotate": (0, 1, 2), "attend": (0, 3, 4), "add": (0, 1)}.get(name, (0,))
    for t in range(5):
        one = [a[t : t + 1] if i in by_row else a for i, a in enumerate(arguments)]
        alone = getattr(ops, name)(*one, **options)
        assert alone.shape == (1, *together.shape[1:])
        if name == "attend" and ops in BF16_TABLES:  # a weight may fall to the next bf16 number; they add up to 1
            assert np.abs(alone - together[t : t + 1]).max() <= 2.0**-7 * np.abs(arguments[2]).max()
        else:
            assert_close(alone, together[t : t + 1], name, 7 + 11, float(np.abs(together).max()))


@pytest.mark.parametrize("name", SINGLE)
def test_no_rows_give_no_rows(ops: Ops, dtype: Any, name: str, rng: np.random.Generator) -> None:
    """An empty batch is no mistake: the result has the right shape and type, and holds nothing."""
    arguments, options, shape = calls(rng, dtype)[name]
    by_row = {"rotate": (0, 1, 2), "attend": (0, 3, 4), "add": (0, 1)}.get(name, (0,))
    out = getattr(ops, name)(*(a[:0] if i in by_row else a for i, a in enumerate(arguments)), **options)
    assert out.shape == (0, *shape[1:])
    assert out.dtype == dtype


def test_no_rows_of_several_matrices(ops: Ops, dtype: Any, rng: np.random.Generator) -> None:
    for inputs in (13, 128):
        weights = [f32_to_bf16(rng.standard_normal((outputs, inputs), np.float32)) for outputs in (3, 40)]
        outs = ops.linear_each(np.zeros((0, inputs), dtype), weights)
        assert [(out.shape, out.dtype) for out in outs] == [((0, 3), dtype), ((0, 40), dtype)]


def test_denormals_in_a_bf16_table(ops: Ops, dtype: Any) -> None:
    """Kernels take a bf16 weight or input below 2**-126 for 0, and a sum below it becomes 0: no more is lost.

    The reference keeps them. So the two differ by at most 2**-126 times the sum of |x| + |w| of those left out, plus
    2**-126 for each of the sums.
    """
    tiny = 2.0**-126
    weight_OD = f32_to_bf16(np.array([[tiny / 2, 1.0, tiny], [tiny / 128, tiny / 2, -tiny / 2]], np.float32))
    x_TD = np.array([[4.0, tiny / 4, 0.5], [1.0, 2.0, 1.0], [2.0**40, 0.0, 2.0**20]], dtype)
    exact = as_read(ops, x_TD) @ weight_values(ops, weight_OD).T
    most = tiny * (np.abs(x_TD).sum(axis=1)[:, None] + 1 + 3)
    assert (np.abs(ops.linear(x_TD, weight_OD) - exact) <= most).all()
    if ops is BACKENDS["numba bf16"]:
        expected = np.array([[0.0, 0.0], [2.0, 0.0], [tiny * 2.0**20, 0.0]])
        np.testing.assert_array_equal(ops.linear(x_TD, weight_OD), expected)
    else:
        np.testing.assert_allclose(ops.linear(x_TD, weight_OD), exact, rtol=1e-6, atol=2e-45)


@pytest.mark.parametrize("name", Ops._fields)
@pytest.mark.parametrize("table", BACKENDS)
def test_tables_have_the_reference_signatures(table: str, name: str) -> None:
    parameters = [list(inspect.signature(getattr(ops, name)).parameters) for ops in (BACKENDS[table], REFERENCE)]
    assert parameters[0] == parameters[1]


def test_every_table_is_tested() -> None:
    expected = {f"{name} {precision}" for name in policy.BACKENDS for precision in ("f32", "bf16")}
    assert {name if " " in name else f"{name} f32" for name in BACKENDS} == expected
    for name, table in BACKENDS.items():
        assert backend.operations(*name.split()) is table


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(UsageError, match="backend 'torch' is not one of numpy"):
        backend.operations("torch")
