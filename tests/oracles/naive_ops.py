"""What every operation means, one number at a time, in Python floats (float64) and nested lists.

Slow and plain on purpose, and independent: nothing of pg2ref is imported. Sums are `math.fsum`, so that the only
rounding left is that of the products.
"""

import decimal
import math
import struct
from collections.abc import Sequence
from decimal import Decimal

Row = Sequence[float]
Rows = Sequence[Row]
Heads = Sequence[Rows]  # [token][head][number]


def linear(x: Rows, weight: Rows, bias: Row | None = None) -> list[list[float]]:
    out = []
    for row in x:
        out.append([])
        for o in range(len(weight)):
            total = math.fsum(row[d] * weight[o][d] for d in range(len(row)))
            out[-1].append(total + (bias[o] if bias is not None else 0.0))
    return out


def rms_norm(x: Rows, scale: Row, eps: float) -> list[list[float]]:
    out = []
    for row in x:
        root = math.sqrt(math.fsum(number * number for number in row) / len(row) + eps)
        out.append([row[d] / root * (1.0 + scale[d]) for d in range(len(row))])
    return out


def layer_norm(x: Rows, scale: Row, bias: Row, eps: float) -> list[list[float]]:
    out = []
    for row in x:
        mean = math.fsum(row) / len(row)
        variance = math.fsum((number - mean) ** 2 for number in row) / len(row)
        root = math.sqrt(variance + eps)
        out.append([(row[e] - mean) / root * scale[e] + bias[e] for e in range(len(row))])
    return out


def gelu(number: float) -> float:
    inner = math.sqrt(2.0 / math.pi) * (number + 0.044715 * number * number * number)
    return number / 2.0 * (1.0 + math.tanh(inner))


def gated_gelu(gate: Rows, up: Rows) -> list[list[float]]:
    return [[gelu(gate[t][f]) * up[t][f] for f in range(len(gate[t]))] for t in range(len(gate))]


def soft_cap(number: float, cap: float | None) -> float:
    return number if cap is None else cap * math.tanh(number / cap)


def softmax(scores: Row, allowed: Sequence[bool]) -> list[float]:
    """Over the allowed scores; the others weigh exactly nothing."""
    largest = max(score for score, may in zip(scores, allowed, strict=True) if may)
    powers = [math.exp(score - largest) if may else 0.0 for score, may in zip(scores, allowed, strict=True)]
    total = math.fsum(powers)
    return [power / total for power in powers]


def rotate(x: Heads, positions: Sequence[int], theta: float) -> list[list[list[float]]]:
    """Number r turns with number r + H / 2, by position * theta ** (-2r / H)."""
    out = []
    for t, heads in enumerate(x):
        out.append([])
        for head in heads:
            half = len(head) // 2
            turned = [0.0] * len(head)
            for r in range(half):
                angle = positions[t] * theta ** (-2.0 * r / len(head))
                turned[r] = head[r] * math.cos(angle) - head[half + r] * math.sin(angle)
                turned[half + r] = head[half + r] * math.cos(angle) + head[r] * math.sin(angle)
            out[-1].append(turned)
    return out


def attend(
    query: Heads,
    key: Heads,
    value: Heads,
    allowed: Sequence[Sequence[bool]],
    *,
    scale: float,
    logit_cap: float | None,
) -> list[list[list[float]]]:
    """`allowed[t][s]` says whether row t may read key s; neighbouring query heads share a key head."""
    group = len(query[0]) // len(key[0])
    out = []
    for t in range(len(query)):
        out.append([])
        for n in range(len(query[t])):
            k = n // group
            scores = []
            for s in range(len(key)):
                product = math.fsum(query[t][n][h] * key[s][k][h] for h in range(len(query[t][n])))
                scores.append(soft_cap(product * scale, logit_cap))
            weights = softmax(scores, allowed[t])
            width = len(value[0][k])
            out[-1].append([math.fsum(weights[s] * value[s][k][h] for s in range(len(key))) for h in range(width)])
    return out


def attend_bf16(
    query: Heads,
    key: Heads,
    value: Heads,
    allowed: Sequence[Sequence[bool]],
    *,
    scale: float,
    logit_cap: float | None,
    noise: float,
) -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    """Least and most that attention may give whose weights are rounded to bf16.

    `noise`: the relative error of a weight before it is rounded, by which it may fall to either of two bf16 numbers.
    """
    group, least, most = len(query[0]) // len(key[0]), [], []
    for t in range(len(query)):
        least.append([])
        most.append([])
        for n in range(len(query[t])):
            k, scores = n // group, []
            for s in range(len(key)):
                product = math.fsum(query[t][n][h] * key[s][k][h] for h in range(len(query[t][n])))
                scores.append(soft_cap(product * scale, logit_cap))
            weights = softmax(scores, allowed[t])
            low = [nearest_bf16(weight * (1.0 - noise)) for weight in weights]
            high = [nearest_bf16(weight * (1.0 + noise)) for weight in weights]
            ends = [
                [sorted((low[s] * value[s][k][h], high[s] * value[s][k][h])) for s in range(len(key))]
                for h in range(len(value[0][k]))
            ]
            least[-1].append([math.fsum(pair[0] for pair in pairs) for pairs in ends])
            most[-1].append([math.fsum(pair[1] for pair in pairs) for pairs in ends])
    return least, most


def nearest_bf16(number: float) -> float:
    """A number, rounded to float32 and then to bf16."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    return bf16_to_float(float32_to_bf16(bits))


def bf16_to_float(bits: int) -> float:
    """The number that a bfloat16 pattern stands for: a float32 whose lower half is zero."""
    return struct.unpack("<f", struct.pack("<HH", 0, bits))[0]


def float32_to_bf16(bits: int) -> int:
    """The bfloat16 pattern nearest to a float32 pattern, ties to the even one; a NaN becomes a quiet NaN."""
    sign, magnitude = bits & 0x80000000, bits & 0x7FFFFFFF
    kept, rest = divmod(magnitude, 1 << 16)
    if magnitude > 0x7F800000:
        return sign >> 16 | kept | 0x40
    if rest > 1 << 15 or (rest == 1 << 15 and kept % 2 == 1):
        kept += 1  # from the largest number this goes to infinity, as it should
    return sign >> 16 | kept


PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def exact_cos_sin(position: int, r: int, head_dim: int, theta: float) -> tuple[Decimal, Decimal]:
    """Cosine and sine of the rotation of one pair, to 50 digits."""
    with decimal.localcontext(prec=60):
        angle = position * Decimal(theta) ** (Decimal(-2 * r) / head_dim)
        angle -= (angle / (2 * PI)).to_integral_value() * 2 * PI
        cosine, sine, term = Decimal(0), Decimal(0), Decimal(1)
        for n in range(0, 80, 2):  # angle ** n / n! at every turn
            sign = -1 if n % 4 else 1
            cosine += sign * term
            term *= angle / (n + 1)
            sine += sign * term
            term *= angle / (n + 2)
        return cosine, sine
