"""Resizing written a second time, pixel by pixel: Pillow's integer bicubic, and TensorFlow's bilinear.

Images are lists of rows of pixels, a pixel is a list of channel values 0..255. Slow, without arrays.
"""

import math

import numpy as np

Pixels = list[list[list[int]]]


def keys_cubic(x: float) -> float:
    """Keys's cubic with a = -0.5 (IEEE Trans. ASSP 29, 1981, equation 15), terms in Pillow's order."""
    x, a = abs(x), -0.5
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    if x < 2:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


def bicubic_taps(in_px: int, out_px: int) -> list[list[tuple[int, int]]]:
    """For each output pixel its (input pixel, weight in units of 2**-22)."""
    scale = in_px / out_px
    stretch = scale if scale > 1 else 1.0
    all_taps = []
    for i in range(out_px):
        centre = (i + 0.5) * scale
        low = max(0, int(centre - 2 * stretch + 0.5))
        high = min(in_px, int(centre + 2 * stretch + 0.5))
        weights = [keys_cubic((j - centre + 0.5) * (1.0 / stretch)) for j in range(low, high)]
        total = 0.0
        for weight in weights:
            total += weight
        taps = []
        for j, weight in zip(range(low, high), weights, strict=True):
            fixed = weight / total * 2**22
            taps.append((j, int(fixed + 0.5) if fixed >= 0 else int(fixed - 0.5)))
        all_taps.append(taps)
    return all_taps


def bicubic_line(line: list[list[int]], out_px: int) -> list[list[int]]:
    if len(line) == out_px:
        return line
    channels = len(line[0])
    out = []
    for taps in bicubic_taps(len(line), out_px):
        sums = [(2**21 + sum(weight * line[j][c] for j, weight in taps)) >> 22 for c in range(channels)]
        out.append([min(max(value, 0), 255) for value in sums])
    return out


def swap_axes(pixels: Pixels) -> Pixels:
    return [list(column) for column in zip(*pixels, strict=True)]


def bicubic(pixels: Pixels, width_px: int, height_px: int, down_first: bool = False) -> Pixels:
    """Pillow's `resize(..., BICUBIC)`: across first, then down on the rounded values, or the other way round."""
    if down_first:
        return swap_axes(bicubic(swap_axes(pixels), height_px, width_px))
    across = [bicubic_line(row, width_px) for row in pixels]
    return swap_axes([bicubic_line(column, height_px) for column in swap_axes(across)])


def pillow_goes_down_first(version: tuple[int, ...], in_px: tuple[int, int], out_px: tuple[int, int]) -> bool:
    """Which pass Pillow of this version starts with; sizes are (width, height). Found by trying all sizes."""
    (in_width, in_height), (out_width, out_height) = in_px, out_px
    if version >= (13,):
        return in_height > out_height and in_height - out_height > 2 * (in_width - out_width)
    return version >= (12, 2) and in_height > 100 * in_width and in_height > out_height


def bilinear(pixels: Pixels, width_px: int, height_px: int) -> Pixels:
    """tf.image.resize(bilinear, antialias=False): four neighbours of the half-pixel centre, then truncation."""
    in_height, in_width = len(pixels), len(pixels[0])
    out = []
    for y in range(height_px):
        source_y = (y + 0.5) * in_height / height_px - 0.5
        top, down = max(math.floor(source_y), 0), min(math.floor(source_y) + 1, in_height - 1)
        part_y = source_y - math.floor(source_y)
        row = []
        for x in range(width_px):
            source_x = (x + 0.5) * in_width / width_px - 0.5
            left, right = max(math.floor(source_x), 0), min(math.floor(source_x) + 1, in_width - 1)
            part_x = source_x - math.floor(source_x)
            pixel = []
            for c in range(len(pixels[0][0])):
                upper = pixels[top][left][c] * (1 - part_x) + pixels[top][right][c] * part_x
                lower = pixels[down][left][c] * (1 - part_x) + pixels[down][right][c] * part_x
                pixel.append(int(np.float32(upper * (1 - part_y) + lower * part_y)))
            row.append(pixel)
        out.append(row)
    return out


def tent(in_px: int, out_px: int, i: int) -> list[float]:
    """Weights of all input pixels for output pixel i: a tent as wide as two output (at least input) pixels."""
    scale = in_px / out_px
    half_width = max(scale, 1)
    heights = [max(0.0, 1 - abs((j + 0.5) - (i + 0.5) * scale) / half_width) for j in range(in_px)]
    return [height / sum(heights) for height in heights]


def bilinear_antialias(pixels: Pixels, width_px: int, height_px: int) -> Pixels:
    """tf.image.resize(bilinear, antialias=True), then truncation."""
    in_height, in_width, channels = len(pixels), len(pixels[0]), len(pixels[0][0])
    columns = [tent(in_width, width_px, x) for x in range(width_px)]
    out = []
    for y in range(height_px):
        rows = tent(in_height, height_px, y)
        out.append([])
        for weights in columns:
            sums = [0.0] * channels
            for j, weight_y in enumerate(rows):
                if weight_y == 0:
                    continue
                for i, weight_x in enumerate(weights):
                    for c in range(channels):
                        sums[c] += weight_y * weight_x * pixels[j][i][c]
            out[-1].append([int(np.float32(value)) for value in sums])
    return out


def nearest_corners(pixels: Pixels, width_px: int, height_px: int) -> Pixels:
    """gemma.cpp's nearest neighbour: the corner pixels lie upon one another, halves go up."""

    def index(i: int, in_px: int, out_px: int) -> int:
        if out_px == 1:
            return 0
        return min(math.floor(float(np.float32(i) * (np.float32(in_px - 1) / np.float32(out_px - 1))) + 0.5), in_px - 1)

    return [
        [pixels[index(y, len(pixels), height_px)][index(x, len(pixels[0]), width_px)] for x in range(width_px)]
        for y in range(height_px)
    ]
