"""Program: run every kernel on fixed inputs and write the results; test_kernel_paths.py compares processors' paths.

NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES=+avx2,+fma python tests/kernel_numbers.py out.npz
"""

import sys

import numpy as np

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.kernels import attention, elementwise, linear, quantized
from pg2ref.kernels.simd.cpu import cpu
from pg2ref.quantized import QuantizedMatrix


def numbers(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def with_extremes(bits: Array) -> Array:
    """Denormals, which a bf16 dot product takes for zero, and numbers whose products are denormal or overflow."""
    bits.reshape(-1)[:7] = 0x0001, 0x8001, 0x007F, 0x1F80, 0x9F80, 0x7F00, 0x0080
    return bits


def linear_results(rng: np.random.Generator) -> dict[str, Array]:
    found = {}
    for rows, outputs, inputs in [(1, 37, 256), (3, 37, 256), (16, 5, 384), (1, 7, 33), (21, 53, 1300), (40, 64, 64)]:
        name = f"{rows}_{outputs}_{inputs}"
        x, weight, bias = numbers(rng, rows, inputs), numbers(rng, outputs, inputs), numbers(rng, outputs)
        found[f"f32_f32_{name}"] = linear.linear(x, weight, bias)
        found[f"f32_bf16_{name}"] = linear.linear(x, f32_to_bf16(weight), bias)
        found[f"bf16_{name}"] = linear.linear_bf16(x, with_extremes(f32_to_bf16(weight)), bias)
        tiny = (x * np.float32(1e-30)).astype(np.float32)
        found[f"bf16_tiny_{name}"] = linear.linear_bf16(tiny, f32_to_bf16(weight * np.float32(1e-9)))
    return found


def quantized_results(rng: np.random.Generator) -> dict[str, Array]:
    found = {}
    for bits in (8, 4):
        for rows, blocks, groups in [(1, 3, 5), (2, 1, 80), (31, 4, 3)]:
            codes = rng.integers(0, 256, (blocks, groups * bits, 16, 4), dtype=np.uint8)
            scales = f32_to_bf16(numbers(rng, blocks, groups, 16))
            x = numbers(rng, rows, groups * 32)
            matrix = QuantizedMatrix(codes, scales, (blocks * 16 - 3, groups * 32), bits)
            found[f"int{bits}_{rows}"] = quantized.multiply(x, [matrix], [None])[0]
    return found


def other_results(rng: np.random.Generator) -> dict[str, Array]:
    found = {}
    for rows, keys, size in [(1, 9, 16), (1, 200, 256), (70, 131, 24), (5, 7, 13)]:
        query, key, value = numbers(rng, rows, 4, size), numbers(rng, keys, 2, size), numbers(rng, keys, 2, size)
        first, last = rng.integers(0, 3, rows), keys - 1 - rng.integers(0, 3, rows)
        for name, attend in (("f32", attention.attend), ("bf16", attention.attend_bf16)):
            for cap in (None, 5.0):
                out = attend(query, key, value, first, last, scale=0.3, logit_cap=cap)
                found[f"attend_{name}_{rows}_{keys}_{cap}"] = out
    x, gain = numbers(rng, 3, 45), numbers(rng, 45)
    found["rms_norm"] = elementwise.rms_norm(x, gain, 1e-6)
    found["layer_norm"] = elementwise.layer_norm(x, gain, gain, 1e-6)
    found["gelu"] = elementwise.gelu(x)
    found["gated_gelu"] = elementwise.gated_gelu(x, x)
    found["gated_bf16"] = linear.multiply_gated(x, numbers(rng, 53, 45), numbers(rng, 53, 45), is_bf16=True)
    found["soft_cap"] = elementwise.soft_cap(x, 2.0)
    return found


def main(path: str) -> None:
    found = {"path": np.array(cpu().name)}
    for results in (linear_results, quantized_results, other_results):
        found |= results(np.random.default_rng(11))
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
