"""exp, tanh, the logistic function and GELU as plain float32 arithmetic, so that LLVM vectorises the loops around them.

All rest on exp(x) - 1 = 2 ** n * (exp(r) - 1) + (2 ** n - 1) with n whole and |r| <= ln(2) / 2, where the Taylor series
of exp(r) - 1 is short: the first term left out is 5e-9 of the result. 2 ** n is written into the exponent's bits.
Near 0 nothing cancels, so the results keep their relative accuracy there.
"""

import numpy as np

from pg2ref.kernels.compiling import inlined

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # few bits, so n * it is exact; the two add up to ln 2
LN2_LOW = np.float32(-2.1219444005469057e-4)
LEAST, MOST = np.float32(-87.0), np.float32(89.0)  # below, 2 ** n would be denormal; at 89 it is infinite
ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)
GELU_LINEAR = np.float32(2 * 0.7978845608028654)  # 2 * sqrt(2 / pi)
GELU_CUBIC = np.float32(2 * 0.7978845608028654 * 0.044715)
SERIES = tuple(np.float32(1 / factorial) for factorial in (5040, 720, 120, 24, 6, 2, 1))


@inlined
def split_exp(x):  # type: ignore[no-untyped-def]
    """(exp(r) - 1, 2 ** n) of a number brought into LEAST to MOST."""
    x = min(max(x, LEAST), MOST)
    n = np.floor(x * LOG2_E + HALF)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    series = SERIES[0]
    series = series * r + SERIES[1]
    series = series * r + SERIES[2]
    series = series * r + SERIES[3]
    series = series * r + SERIES[4]
    series = series * r + SERIES[5]
    series = series * r + SERIES[6]
    return series * r, np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@inlined
def exp_float32(x):  # type: ignore[no-untyped-def]
    """Exp of a float32; infinite from 88.4 on; below -87, where the result would be denormal, that of -87 (1.6e-38)."""
    less_one, power = split_exp(x)
    return (less_one + ONE) * power


@inlined
def tanh_float32(x):  # type: ignore[no-untyped-def]
    """Tanh by -m / (2 + m) with m = exp(-2 |x|) - 1."""
    less_one, power = split_exp(-TWO * abs(x))
    m = less_one * power + (power - ONE)
    result = -m / (TWO + m)
    return result if x >= 0 else -result


@inlined
def sigmoid_float32(x):  # type: ignore[no-untyped-def]
    """The logistic function, 1 / (1 + exp(-x))."""
    return ONE / (ONE + exp_float32(-x))


@inlined
def gelu_float32(x):  # type: ignore[no-untyped-def]
    """The tanh form of GELU of one number: 0.5 x (1 + tanh(y)) is x times the logistic function of 2 y."""
    return x * sigmoid_float32(x * (GELU_LINEAR + GELU_CUBIC * x * x))
