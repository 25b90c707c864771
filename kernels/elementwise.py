"""Norms, rotation, GELU, soft caps, sums: a pass over the rows each; the sums of the norms are float64, rounded once.

Loops run over slices from 0 on: an index that might be negative, for all Numba knows, is not vectorised.
"""

import numpy as np
from numba import prange

from pg2ref.kernels.compiling import kernel, run
from pg2ref.kernels.exponential import gelu_float32, tanh_float32
from pg2ref.kernels.results import empty
from pg2ref.kernels.simd.sums import sum_of, sum_of_squares
from pg2ref.kernels.stored import Array, as_float32, readable

CHUNK = 4096  # numbers that a thread takes at a time


@kernel
def rms_norm_rows(x_TD, scale_D, eps, out_TD):  # type: ignore[no-untyped-def]
    """X over its root mean square, times 1 + scale."""
    T, D = x_TD.shape
    for t in prange(T):
        inverse = 1.0 / np.sqrt(sum_of_squares(x_TD[t], 0.0) / D + eps)
        for d in range(D):
            out_TD[t, d] = x_TD[t, d] * inverse * (1.0 + np.float64(as_float32(scale_D[d])))


def rms_norm(x_TD: Array, scale_D: Array, eps: float) -> Array:
    """Divide each row by its root mean square and multiply by (1 + scale); see model/ops.py, rms_norm."""
    out_TD = empty(x_TD.shape)
    run(rms_norm_rows, x_TD.size, np.ascontiguousarray(x_TD), readable(scale_D), float(eps), out_TD)
    return out_TD


@kernel
def layer_norm_rows(x_TE, scale_E, bias_E, eps, out_TE):  # type: ignore[no-untyped-def]
    """Mean and variance of a row, then scale and shift."""
    T, E = x_TE.shape
    for t in prange(T):
        mean = sum_of(x_TE[t]) / E
        inverse = 1.0 / np.sqrt(sum_of_squares(x_TE[t], mean) / E + eps)
        for i in range(E):
            out_TE[t, i] = (x_TE[t, i] - mean) * inverse * as_float32(scale_E[i]) + as_float32(bias_E[i])


def layer_norm(x_TE: Array, scale_E: Array, bias_E: Array, eps: float) -> Array:
    """Normalise each row to mean 0 and variance 1, then scale and shift; see model/ops.py, layer_norm."""
    out_TE = empty(x_TE.shape)
    rows, scale_E, bias_E = np.ascontiguousarray(x_TE), readable(scale_E), readable(bias_E)
    run(layer_norm_rows, x_TE.size, rows, scale_E, bias_E, float(eps), out_TE)
    return out_TE


def add(stream_TD: Array, branch_TD: Array) -> Array:
    """The residual stream with a branch added to it; see model/ops.py, add."""
    return np.add(stream_TD, branch_TD, out=empty(stream_TD.shape))


@kernel
def gelu_chunks(x, out):  # type: ignore[no-untyped-def]
    """The tanh form of GELU."""
    for chunk in prange((x.size + CHUNK - 1) // CHUNK):
        numbers = x[chunk * CHUNK : (chunk + 1) * CHUNK]
        results = out[chunk * CHUNK : (chunk + 1) * CHUNK]
        for i in range(numbers.size):
            results[i] = gelu_float32(numbers[i])


def gelu(x: Array) -> Array:
    """GELU in its tanh form, of any shape; see model/ops.py, gelu."""
    out = empty(x.shape)
    run(gelu_chunks, x.size, np.ascontiguousarray(x).reshape(-1), out.reshape(-1))
    return out


@kernel
def gated_gelu_chunks(gate, up, out):  # type: ignore[no-untyped-def]
    """gelu(gate) * up."""
    for chunk in prange((gate.size + CHUNK - 1) // CHUNK):
        gates = gate[chunk * CHUNK : (chunk + 1) * CHUNK]
        ups = up[chunk * CHUNK : (chunk + 1) * CHUNK]
        results = out[chunk * CHUNK : (chunk + 1) * CHUNK]
        for i in range(gates.size):
            results[i] = gelu_float32(gates[i]) * ups[i]


def gated_gelu(gate_TF: Array, up_TF: Array) -> Array:
    """GeGLU; see model/ops.py, gated_gelu."""
    out_TF = empty(gate_TF.shape)
    gate, up = np.ascontiguousarray(gate_TF).reshape(-1), np.ascontiguousarray(up_TF).reshape(-1)
    run(gated_gelu_chunks, gate.size, gate, up, out_TF.reshape(-1))
    return out_TF


@kernel
def soft_cap_chunks(x, cap, out):  # type: ignore[no-untyped-def]
    """Cap * tanh(x / cap)."""
    for chunk in prange((x.size + CHUNK - 1) // CHUNK):
        numbers = x[chunk * CHUNK : (chunk + 1) * CHUNK]
        results = out[chunk * CHUNK : (chunk + 1) * CHUNK]
        for i in range(numbers.size):
            results[i] = cap * tanh_float32(numbers[i] / cap)


def soft_cap(logits: Array, cap: float | None) -> Array:
    """Squash logits into (-cap, cap); see model/ops.py, soft_cap."""
    if cap is None:
        return logits
    out = empty(logits.shape)
    soft_cap_chunks(np.ascontiguousarray(logits).reshape(-1), np.float32(cap), out.reshape(-1))
    return out


@kernel
def rotate_rows(x_TNH, cos_TR, sin_TR, out_TNH):  # type: ignore[no-untyped-def]
    """The first half of a head with the second, in float64: its products are exact, however they are compiled."""
    T, N, H = x_TNH.shape
    R = H // 2
    for t in prange(T):
        for n in range(N):
            for r in range(R):
                first, second = np.float64(x_TNH[t, n, r]), np.float64(x_TNH[t, n, r + R])
                out_TNH[t, n, r] = first * cos_TR[t, r] - second * sin_TR[t, r]
                out_TNH[t, n, r + R] = second * cos_TR[t, r] + first * sin_TR[t, r]


def rotate(x_TNH: Array, cos_TR: Array, sin_TR: Array) -> Array:
    """Turn every head of every row by its position's angles; see model/rope.py, rotate."""
    out_TNH = empty(x_TNH.shape)
    run(rotate_rows, x_TNH.size, np.ascontiguousarray(x_TNH), cos_TR, sin_TR, out_TNH)
    return out_TNH
