"""Program: run every kernel on fixed inputs and write the results; test_kernel_paths.py compares processors' paths.

NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES=+avx2,+fma python tests/kernel_numbers.py out.npz

Results are named KIND|TERMS|CASE: KIND is `bits` where the arithmetic is fixed, `company` where a row alone is compared
with the same among others, else the bound of closeness.py that holds between two paths, with TERMS.
"""

import sys

import numpy as np

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.kernels import attention, elementwise, linear, quantized
from pg2ref.kernels.simd.cpu import cpu
from pg2ref.quantized import QuantizedMatrix

# rows, outputs, inputs: by the kernel for few rows and by tiles, tails of each, odd numbers, more inputs than a block
SHAPES = [
    (1, 37, 256),
    (1, 9, 6144),
    (2, 9, 6144),
    (3, 37, 256),
    (16, 5, 384),
    (1, 7, 33),
    (2, 1, 1),
    (21, 53, 1301),
    (40, 64, 64),
    (97, 31, 5),
]


def numbers(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def with_extremes(bits: Array) -> Array:
    """Denormals, which a bf16 dot product takes for zero, and numbers whose products are denormal or overflow."""
    bits.reshape(-1)[:7] = (0x0001, 0x8001, 0x007F, 0x1F80, 0x9F80, 0x7F00, 0x0080)[: bits.size]
    return bits


def linear_results(rng: np.random.Generator) -> dict[str, Array]:
    found = {}
    for rows, outputs, inputs in SHAPES:
        name = f"{inputs}|{rows}_{outputs}"
        x, weight, bias = numbers(rng, rows, inputs), numbers(rng, outputs, inputs), numbers(rng, outputs)
        found[f"linear|{name}_f32"] = linear.linear(x, weight, bias)
        found[f"linear|{name}_bf16_weights"] = linear.linear(x, f32_to_bf16(weight), bias)
        found[f"bits|{name}"] = linear.linear_bf16(x, with_extremes(f32_to_bf16(weight)), bias)
        tiny = (x * np.float32(1e-30)).astype(np.float32)  # products around the smallest normal number, and below
        found[f"bits|{name}_tiny"] = linear.linear_bf16(tiny, f32_to_bf16(weight * np.float32(4e-9)))
        large = (x * np.float32(1e19)).astype(np.float32)  # sums around the largest number, of larger products
        found[f"bits|{name}_large"] = linear.linear_bf16(large, f32_to_bf16(weight * np.float32(1e19)))
    return found


def company_results(rng: np.random.Generator) -> dict[str, Array]:
    """Which numbers of rows that are multiplied together differ from those of a row alone; none should."""
    found = {}
    for inputs in (384, 6144, 9216):
        x, weight = numbers(rng, 4, inputs), f32_to_bf16(numbers(rng, 37, inputs))
        for multiply in (linear.linear, linear.linear_bf16):
            alone = np.concatenate([multiply(x[t : t + 1], weight) for t in range(len(x))])
            found[f"company|{inputs}|{multiply.__name__}"] = multiply(x, weight) != alone
    return found


def joined_results(rng: np.random.Generator) -> dict[str, Array]:
    """Matrices that share their rows, and GeGLU as a share of the largest gate times the largest up."""
    found = {}
    for rows, inputs in [(1, 128), (3, 256), (16, 128), (5, 45), (19, 1301), (33, 128)]:
        x, bias = numbers(rng, rows, inputs), numbers(rng, 70)
        weights = [f32_to_bf16(numbers(rng, outputs, inputs)) for outputs in (7, 70, 1)]
        for kind, is_bf16 in (("linear", False), ("bits", True)):
            outs = linear.linear_each(x, weights, [None, bias, None], is_bf16=is_bf16)
            found |= {f"{kind}|{inputs}|{rows}_matrix_{m}": out for m, out in enumerate(outs)}
        pair = [f32_to_bf16(numbers(rng, 53, inputs) * np.float32(inputs**-0.5)) for _ in range(2)]
        for kind, is_bf16 in (("gated_linear", False), ("gated_gelu", True)):
            gate, up = linear.linear_each(x, pair, [None, None], is_bf16=is_bf16)
            out = linear.gated_linear(x, *pair, is_bf16=is_bf16)
            found[f"{kind}|{inputs if kind == 'gated_linear' else 1}|{rows}"] = out / (gate.max() * np.abs(up).max())
    return found


def quantized_results(rng: np.random.Generator) -> dict[str, Array]:
    found = {}
    for bits in (8, 4):
        for rows, blocks, groups in [(1, 3, 5), (2, 1, 80), (31, 4, 3)]:
            codes = rng.integers(0, 256, (blocks, groups * bits, 16, 4), dtype=np.uint8)
            scales = f32_to_bf16(numbers(rng, blocks, groups, 16))
            x, bias = numbers(rng, rows, groups * 32), numbers(rng, blocks * 16 - 3)
            matrix = QuantizedMatrix(codes, scales, (blocks * 16 - 3, groups * 32), bits)
            for with_bias in (False, True):
                out = quantized.linear_each(x, [matrix], [bias if with_bias else None])[0]
                found[f"quantised linear|{groups + 3}|{bits}_{rows}_{with_bias}"] = out
            for code in (0, 255):  # the largest products: of inputs that become 127 and -127
                largest = QuantizedMatrix(np.full_like(codes, code), scales, matrix.shape, bits)
                x = np.repeat(np.sign(numbers(rng, rows, groups)), 32, axis=1)
                out = quantized.linear_each(x, [largest], [None])[0]
                found[f"quantised linear|{groups + 3}|{bits}_{rows}_{code}"] = out
    return found


def other_results(rng: np.random.Generator) -> dict[str, Array]:
    found = {}
    for rows, keys, size in [(1, 9, 16), (1, 200, 256), (1, 31, 13), (70, 131, 24), (266, 300, 72), (5, 7, 13)]:
        query, key, value = numbers(rng, rows, 4, size), numbers(rng, keys, 2, size), numbers(rng, keys, 2, size)
        value /= np.abs(value).max()
        first, last = rng.integers(0, 3, rows), keys - 1 - rng.integers(0, 3, rows)
        for kind, attend in (("attend", attention.attend), ("bf16 weights", attention.attend_bf16)):
            for cap in (None, 5.0):
                out = attend(query, key, value, first, last, scale=0.3, logit_cap=cap)
                found[f"{kind}|{size + keys}|{rows}_{cap}"] = out
    for size in (45, 2304):
        x, gain = numbers(rng, 50, size), numbers(rng, size)
        found[f"rms_norm|{size}|"] = elementwise.rms_norm(x, gain, 1e-6)
        found[f"layer_norm|{size}|"] = elementwise.layer_norm(x, gain, gain, 1e-6)
    found["gelu|1|"] = elementwise.gelu(x)
    found["gated_gelu|1|"] = elementwise.gated_gelu(x, x)
    found["soft_cap|1|"] = elementwise.soft_cap(x, 2.0)
    angles = rng.uniform(-4, 4, (5, 7))
    found["rotate|2|"] = elementwise.rotate(numbers(rng, 5, 3, 14), np.cos(angles), np.sin(angles))
    return found


def main(path: str) -> None:
    found = {"path": np.array(cpu().name)}
    for results in (linear_results, company_results, joined_results, quantized_results, other_results):
        found |= results(np.random.default_rng(11))
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
