"""Kernels and threads: their number changes no bit, and a thread's own float settings are left as they were."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.kernels import attention, elementwise, linear, machine_limits, quantized
from pg2ref.kernels.simd.cpu import IS_X86
from pg2ref.kernels.simd.machine import flush_denormals, restore_control
from pg2ref.quantized import QuantizedMatrix, quantize_matrix

THREADS = (1, 2)
ROWS = (1, 5, 40)  # few rows, and many; the first is the way of decoding
INPUTS = (64, 128, 400)  # by tiles, by the kernel for few rows, by tiles with a tail


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def stored(rng: np.random.Generator, *shape: int) -> Array:
    return f32_to_bf16(normal(rng, *shape))


@pytest.fixture
def restored_threads() -> Iterator[None]:
    most = numba.get_num_threads()
    yield
    numba.set_num_threads(most)


@pytest.fixture
def by_threads(restored_threads: None) -> Callable[[Callable[[], Array]], None]:
    """Compute something with each number of threads and compare the bits."""
    if max(THREADS) > numba.config.NUMBA_NUM_THREADS:
        pytest.skip("Numba has one thread")

    def compare(compute: Callable[[], Array]) -> None:
        results = []
        for threads in THREADS:
            numba.set_num_threads(threads)
            results.append(compute())
        np.testing.assert_array_equal(results[0], results[1])

    return compare


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_linear(by_threads: Callable, is_bf16: bool, rows: int, inputs: int, rng: np.random.Generator) -> None:
    """Three matrices that share their rows, of more panels than one, with a last one that is not full."""
    x, bias = normal(rng, rows, inputs), normal(rng, 203)
    weights = [stored(rng, outputs, inputs) for outputs in (203, 7, 64)]
    by_threads(
        lambda: np.concatenate(linear.linear_each(x, weights, [bias, None, None], is_bf16=is_bf16), axis=1),
    )


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_gated_linear(by_threads: Callable, is_bf16: bool, rows: int, rng: np.random.Generator) -> None:
    x, gate, up = normal(rng, rows, 384), stored(rng, 203, 384), stored(rng, 203, 384)
    by_threads(lambda: linear.gated_linear(x, gate, up, is_bf16=is_bf16))


@pytest.mark.parametrize("attend", [attention.attend, attention.attend_bf16])
@pytest.mark.parametrize(("rows", "keys"), [(1, 211), (70, 131)])
def test_attention(by_threads: Callable, attend: Callable, rows: int, keys: int, rng: np.random.Generator) -> None:
    """More heads than threads, of more than one block of queries."""
    query, key, value = normal(rng, rows, 6, 24), normal(rng, keys, 3, 24), normal(rng, keys, 3, 24)
    first, last = rng.integers(0, 3, rows), keys - 1 - rng.integers(0, 60, rows)
    by_threads(lambda: attend(query, key, value, first, last, scale=0.3, logit_cap=5.0))
    by_threads(lambda: attention.attention_weights(query, key, first, last, scale=0.3, logit_cap=5.0))


def quantized_pair(rng: np.random.Generator, bits: int) -> list[QuantizedMatrix]:
    return [quantize_matrix(normal(rng, 421, 333), bits) for _ in range(2)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 200])
def test_quantised_matrices(by_threads: Callable, bits: int, rows: int, rng: np.random.Generator) -> None:
    x, pair, bias = normal(rng, rows, 333), quantized_pair(rng, bits), normal(rng, 421)
    by_threads(lambda: np.concatenate(quantized.linear_each(x, pair, [bias, bias]), axis=1))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 200])
def test_quantised_gated_linear(by_threads: Callable, bits: int, rows: int, rng: np.random.Generator) -> None:
    x, pair = normal(rng, rows, 333), quantized_pair(rng, bits)
    by_threads(lambda: quantized.gated_linear(x, *pair))


def test_passes_over_rows(by_threads: Callable, rng: np.random.Generator) -> None:
    """Of more numbers than one thread is given (compiling.SMALL)."""
    x, gain, angles = normal(rng, 60, 1536), normal(rng, 1536), rng.uniform(-4, 4, (60, 128))
    by_threads(lambda: elementwise.rms_norm(x, gain, 1e-6))
    by_threads(lambda: elementwise.layer_norm(x, gain, gain, 1e-6))
    by_threads(lambda: elementwise.gelu(x))
    by_threads(lambda: elementwise.gated_gelu(x, x))
    by_threads(lambda: elementwise.soft_cap(x, 2.0))
    by_threads(lambda: elementwise.rotate(x.reshape(60, 6, 256), np.cos(angles), np.sin(angles)))


@numba.njit
def change_control(on: int) -> int:
    """Set this thread's treatment of denormals; what it was."""
    return flush_denormals(on)


@numba.njit
def control_of_this_thread() -> int:
    control = flush_denormals(0)
    restore_control(control)
    return control


KERNELS = {
    "few rows": lambda rng: linear.linear_bf16(normal(rng, 1, 128), stored(rng, 300, 128)),
    "few rows in f32": lambda rng: linear.linear(normal(rng, 1, 128), stored(rng, 300, 128)),
    "panels": lambda rng: linear.linear_bf16(normal(rng, 40, 64), stored(rng, 300, 64)),
    "gated panels": lambda rng: linear.gated_linear(
        normal(rng, 40, 64), stored(rng, 300, 64), stored(rng, 300, 64), is_bf16=True
    ),
    "attention": lambda rng: attention.attend_bf16(
        *(normal(rng, 9, 2, 16) for _ in range(3)), np.zeros(9, int), np.arange(9), scale=0.3, logit_cap=None
    ),
    "limits": lambda rng: machine_limits.multiply_repeatedly("bf16", 1),
}


@pytest.mark.skipif(not IS_X86, reason="no MXCSR")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("on", [0, 1])
def test_a_thread_keeps_its_treatment_of_denormals(
    name: str, on: int, restored_threads: None, rng: np.random.Generator
) -> None:
    """A program that flushes denormals still does after a kernel, and one that keeps them still does too."""

    def in_a_thread() -> tuple[int, int, bool]:
        numba.set_num_threads(1)  # the calling thread does all
        change_control(on)
        before = control_of_this_thread()
        KERNELS[name](rng)
        half = np.array([2.0**-126], np.float32) * np.float32(0.5)
        return before, control_of_this_thread(), bool(half[0] == 0)

    with ThreadPoolExecutor(1) as pool:  # its thread ends with it
        before, after, is_flushed = pool.submit(in_a_thread).result()
    assert (after & 0xFFC0) == (before & 0xFFC0)  # the lower bits say what has happened since
    assert is_flushed == bool(on)
