"""What adapters add to the product with a stored matrix: two thin matrices, in float32, beside what is there already.

They are small beside the stored one, and at decoding they stay in the caches: no packing, no tiles. A sum's order does
not depend on the number of rows or threads.
"""

import numpy as np
from numba import prange

from pg2ref.kernels.compiling import kernel, run
from pg2ref.kernels.simd.sums import dot
from pg2ref.kernels.stored import Array, widened

CHUNK = 1024  # outputs at a time: a stretch of `up` of rank 8 is 32 kB, and is used for all rows


@kernel
def thin_products(x_TD, down_RD, thin_TR):  # type: ignore[no-untyped-def]
    """Rows times down.T."""
    T, R = thin_TR.shape
    for i in prange(T * R):
        thin_TR[i // R, i % R] = dot(x_TD[i // R], down_RD[i % R])


@kernel
def add_outputs(out_TO, thin_TR, up_RO, gain_O, bias_O):  # type: ignore[no-untyped-def]
    """Gain * out + thin @ up + bias, in place; a gain or bias without numbers is none."""
    T, O = out_TO.shape  # noqa: E741 - the dimension key
    for chunk in prange((O + CHUNK - 1) // CHUNK):
        start, stop = chunk * CHUNK, min(O, (chunk + 1) * CHUNK)
        for t in range(T):
            outputs = out_TO[t, start:stop]
            if gain_O.size:
                gains = gain_O[start:stop]
                for o in range(outputs.size):
                    outputs[o] *= gains[o]
            for r in range(thin_TR.shape[1]):
                number, weights = thin_TR[t, r], up_RO[r, start:stop]
                for o in range(outputs.size):
                    outputs[o] += number * weights[o]
            if bias_O.size:
                biases = bias_O[start:stop]
                for o in range(outputs.size):
                    outputs[o] += biases[o]


def add_thin(
    out_TO: Array, x_TD: Array, down_RD: Array, up_RO: Array, gain_O: Array | None, bias_O: Array | None
) -> Array:
    """Gain * out + (x @ down.T) @ up + bias, in place; the same as model/ops.py, add_thin."""
    x_TD, none = np.ascontiguousarray(x_TD, np.float32), np.zeros(0, np.float32)
    thin_TR = np.empty((len(x_TD), len(down_RD)), np.float32)
    run(thin_products, thin_TR.size * x_TD.shape[1], x_TD, down_RD, thin_TR)
    gain_O = none if gain_O is None else gain_O
    bias_O = none if bias_O is None else np.require(widened(bias_O), requirements="CAW")
    run(add_outputs, thin_TR.size * out_TO.shape[1], out_TO, thin_TR, up_RO, gain_O, bias_O)
    return out_TO
