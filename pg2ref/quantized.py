"""A quantised weight matrix: codes of 8 or 4 bits and a scale for every 32 inputs, laid out as the kernels read it.

A matrix of O outputs and D inputs is cut into ceil(O / 16) blocks of 16 outputs and G = ceil(D / 32) groups of 32
inputs. What lies in the file, and in memory, row-major:

    scales[b, g, o]     uint16   bf16 bits of the scale of output 16 b + o, inputs 32 g to 32 g + 31
    codes[b, i, o, j]   uint8    8 bits, (blocks, 8 G, 16, 4): input 4 i + j
                                 4 bits, (blocks, 4 G, 16, 4): input 8 i + j in the low half of the byte,
                                                               input 8 i + 4 + j in the high half
    weight = (code - 128) * scale for 8 bits, with codes 1 to 255; (code - 8) * scale for 4 bits, with codes 0 to 15

So 16 outputs times 4 inputs are 64 bytes that follow each other: one vector register, one step of an integer dot
product. Outputs and inputs that only fill up a block or a group have the code of zero, such outputs the scale 0 too.
A scale of 4 bits may be negative, so that the weight of largest magnitude takes -8 whatever its sign. The product
(code - zero) * scale has 16 bits at most: it is exact in float32. A matrix takes 8.5 or 4.5 bits a weight.

How scales are chosen. 4 bits: for the least squared error of the group. 8 bits: the same, among scales that clip
nothing, so that no weight is off by more than half its scale. Codes are the nearest for the scale as it is stored.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from pg2ref.arrays import Array, bf16_to_f32, f32_to_bf16, widen
from pg2ref.errors import ShapeError

BLOCK_OUTPUTS = 16  # outputs
GROUP = 32  # inputs that share a scale
WORD = 4  # inputs of one output that lie side by side
ZERO = {8: 128, 4: 8}  # bits -> the code of zero
LOWEST, HIGHEST = {8: -127, 4: -8}, {8: 127, 4: 7}  # bits -> codes less the code of zero
CHUNK = 1 << 18  # weights quantised at a time: arrays of 1 MB stay in the caches, and calls cost little beside them

# 4 bits: how many scales the largest weight of a group is given. 8 uses the code -8, more is clipped, 7 is the usual
# absmax. Relative error of normal weights: 0.0971 with 7 alone, 0.0859 with 8 alone, 0.0809 with these, and 0.0809
# with 231 numbers from 4.5 to 16; of weights with heavier tails the same, in proportion. The best scale of either sign
# gives 0.0808. Less takes more bits: 0.0731 with an offset a group, 0.0698 with groups of 16, both 5 bits a weight.
STEPS_OF_LARGEST = (6.4, 6.7, 7.0, 7.25, 7.5, 7.75, 8.0, 8.25, 8.5, 8.75, 9.0)
# 8 bits: how many bf16 numbers are tried, upwards from the first that clips nothing. Relative error of normal weights:
# 0.00545 with one, 0.00492 with 8, 0.00487 with 12, 0.00481 with 24; scales that clip a little gain less.
SCALES_TRIED = 12
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # kernels take smaller numbers for 0, so they are stored as 0
LARGEST_SCALE = {8: (1 + 2**-7) * 2.0**121, 4: (2 - 2**-7) * 2.0**124}  # beyond, the lowest code overflows float32


class QuantizedMatrix(NamedTuple):
    """Codes and scales of a matrix (O, D), as a rule views of a file. A type of its own: `linear` picks by it."""

    codes: Array  # uint8
    scales: Array  # uint16: bf16 bits
    shape: tuple[int, int]
    bits: int  # 8 or 4

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return int(self.codes.nbytes + self.scales.nbytes)

    @property
    def size(self) -> int:
        """Number of weights, without those that fill up blocks and groups."""
        return self.shape[0] * self.shape[1]


Weight: TypeAlias = Array | QuantizedMatrix


def stored_shapes(shape: tuple[int, int], bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the codes and of the scales of a matrix (O, D)."""
    blocks, groups = -(-shape[0] // BLOCK_OUTPUTS), -(-shape[1] // GROUP)
    return (blocks, groups * GROUP * bits // 8 // WORD, BLOCK_OUTPUTS, WORD), (blocks, groups, BLOCK_OUTPUTS)


def quantize_matrix(weight_OD: Array, bits: int) -> QuantizedMatrix:
    """Codes and scales of finite weights, bf16 bits or floats; those below about 1e-36 become 0.

    Raises ShapeError for what is no matrix, and for other `bits` than 8 and 4.
    """
    if weight_OD.ndim != 2 or bits not in ZERO:
        raise ShapeError(f"expected a matrix and 8 or 4 bits, got shape {weight_OD.shape} and {bits} bits")
    O, D = weight_OD.shape  # noqa: E741 - the dimension key
    codes_shape, scales_shape = stored_shapes((O, D), bits)
    codes, scales = np.empty(codes_shape, np.uint8), np.empty(scales_shape, np.uint16)
    num_blocks, num_groups, _ = scales_shape
    blocks_at_once = max(1, CHUNK // (BLOCK_OUTPUTS * max(1, num_groups) * GROUP))
    for first in range(0, num_blocks, blocks_at_once):
        rows_OD = widen(
            weight_OD[first * BLOCK_OUTPUTS : (first + blocks_at_once) * BLOCK_OUTPUTS], np.dtype(np.float32)
        )
        blocks = -(-len(rows_OD) // BLOCK_OUTPUTS)
        whole = np.zeros((blocks * BLOCK_OUTPUTS, num_groups * GROUP), np.float32)
        whole[: len(rows_OD), :D] = rows_OD
        chunk_codes, chunk_scales = _quantize_groups(np.ascontiguousarray(whole.reshape(-1, GROUP).T), bits)
        codes[first : first + blocks] = _pack(chunk_codes.T.reshape(blocks, BLOCK_OUTPUTS, -1), bits)
        scales[first : first + blocks] = chunk_scales.reshape(blocks, BLOCK_OUTPUTS, num_groups).transpose(0, 2, 1)
    return QuantizedMatrix(codes, scales, (O, D), bits)


def dequantize(matrix: QuantizedMatrix, dtype: np.dtype[Any], start: int = 0, stop: int | None = None) -> Array:
    """The weights of outputs `start` to `stop`, as rows (outputs, D)."""
    start, stop, _ = slice(start, stop).indices(matrix.shape[0])
    first, end = start // BLOCK_OUTPUTS, -(-stop // BLOCK_OUTPUTS)
    codes = matrix.codes[first:end].transpose(0, 2, 1, 3)
    scales = matrix.scales[first:end].transpose(0, 2, 1)
    rows_OD = _unpack(codes, scales, matrix, dtype).reshape(-1, matrix.shape[1])
    return rows_OD[start - first * BLOCK_OUTPUTS : stop - first * BLOCK_OUTPUTS]


def widen_rows(weight: Weight, dtype: np.dtype[Any], start: int, stop: int) -> Array:
    """Rows `start` to `stop` of a weight of either kind, as numbers."""
    if isinstance(weight, QuantizedMatrix):
        return dequantize(weight, dtype, start, stop)
    return widen(weight[start:stop], dtype)


def pick_rows(weight: Weight, ids_T: Array, dtype: np.dtype[Any]) -> Array:
    """Row `ids_T[t]` for each t, `rows_TD`: how an embedding is read. Other rows are not touched.

    Raises IndexError: an id is no row of the weight.
    """
    if not isinstance(weight, QuantizedMatrix):
        return widen(weight[ids_T], dtype)
    if ids_T.size and not 0 <= ids_T.min() <= ids_T.max() < weight.shape[0]:
        raise IndexError(f"expected rows 0 to {weight.shape[0] - 1}, got {ids_T.min()} to {ids_T.max()}")
    block_T, output_T = np.divmod(ids_T, BLOCK_OUTPUTS)
    return _unpack(weight.codes[block_T, :, output_T], weight.scales[block_T, :, output_T], weight, dtype)


def _unpack(codes: Array, scales: Array, matrix: QuantizedMatrix, dtype: np.dtype[Any]) -> Array:
    """Codes (..., words, 4) and scales (..., G) of single outputs, perhaps of none, as weights (..., D)."""
    if matrix.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-2)
    numbers = codes.reshape(*scales.shape, GROUP).astype(dtype)
    numbers -= ZERO[matrix.bits]
    numbers *= widen(scales, dtype)[..., None]
    return numbers.reshape(*scales.shape[:-1], scales.shape[-1] * GROUP)[..., : matrix.shape[1]]


def _pack(codes: Array, bits: int) -> Array:
    """Codes of whole blocks, (blocks, 16, inputs), as stored bytes."""
    blocks, _, inputs = codes.shape
    if bits == 4:
        halves = codes.reshape(blocks, BLOCK_OUTPUTS, inputs // (2 * WORD), 2, WORD)
        codes = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    words = np.ascontiguousarray(codes).reshape(blocks, BLOCK_OUTPUTS, -1).view(np.uint32)
    stored = np.ascontiguousarray(words.transpose(0, 2, 1))
    return stored.view(np.uint8).reshape(blocks, -1, BLOCK_OUTPUTS, WORD)


def _quantize_groups(groups: Array, bits: int) -> tuple[Array, Array]:
    """Codes (32, N) and scales (N,), as bf16 bits, of N groups that stand side by side, (32, N)."""
    lowest, highest = groups.min(axis=0), groups.max(axis=0)
    extreme = np.where(highest > -lowest, highest, lowest)
    # Scales are chosen for groups whose largest weight is 1/2 to 1: squares of finite weights cannot overflow then, and
    # a power of two changes no rounding.
    exponent = np.maximum(np.frexp(extreme)[1], -126)
    power = np.ldexp(np.float32(1), -exponent)
    choose = _scale_of_4_bits if bits == 4 else _scale_of_8_bits
    scale = np.ldexp(choose(groups * power, extreme * power), exponent)
    scale[np.abs(scale) < SMALLEST_SCALE] = 0
    np.clip(scale, -LARGEST_SCALE[bits], LARGEST_SCALE[bits], out=scale)
    numbers = np.divide(groups, np.where(scale == 0, np.float32(np.inf), scale))
    np.rint(numbers, out=numbers)
    np.clip(numbers, LOWEST[bits], HIGHEST[bits], out=numbers)
    numbers += ZERO[bits]
    return numbers.astype(np.uint8), f32_to_bf16(scale)


def _scale_of_4_bits(groups: Array, extreme: Array) -> Array:
    """The scale of least squared error of each group, rounded to bf16; `extreme` is its largest weight, signed.

    For given codes the best scale is (codes . weights) / (codes . codes), and it leaves a squared error that is smaller
    than that of the scale 0 by (codes . weights)^2 / (codes . codes). Codes are tried of some scales around the usual.
    """
    best_gain, best_scale = np.zeros_like(extreme), np.zeros_like(extreme)
    unit = groups / np.where(extreme == 0, np.float32(-1), -extreme)  # the largest weight of each group is -1
    codes = np.empty_like(groups)
    for steps in STEPS_OF_LARGEST:
        np.multiply(unit, np.float32(steps), out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, LOWEST[4], HIGHEST[4], out=codes)
        product = np.einsum("dn,dn->n", codes, groups)
        square = np.maximum(np.einsum("dn,dn->n", codes, codes), 1)
        gain = product * product / square
        is_better = gain > best_gain
        best_gain = np.where(is_better, gain, best_gain)
        best_scale = np.where(is_better, product / square, best_scale)
    return bf16_to_f32(f32_to_bf16(best_scale))


def _scale_of_8_bits(groups: Array, extreme: Array) -> Array:
    """The scale of least squared error of each group among the first bf16 numbers that clip nothing."""
    first_bits = (np.abs(extreme) / np.float32(HIGHEST[8])).view(np.uint32) + np.uint32(0xFFFF) >> np.uint32(16)
    best_error, best_scale = np.full_like(extreme, np.inf), np.zeros_like(extreme)
    quotients, codes = np.empty_like(groups), np.empty_like(groups)
    for tried in range(SCALES_TRIED):
        scale = bf16_to_f32(first_bits + np.uint32(tried))
        np.multiply(groups, 1 / np.where(scale < SMALLEST_SCALE, np.float32(1), scale), out=quotients)
        np.rint(quotients, out=codes)
        np.subtract(quotients, codes, out=quotients)
        error = np.einsum("dn,dn->n", quotients, quotients) * scale * scale
        is_better = error < best_error
        best_error = np.where(is_better, error, best_error)
        best_scale = np.where(is_better, scale, best_scale)
    return best_scale
