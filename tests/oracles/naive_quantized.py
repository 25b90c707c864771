"""Quantised matrices by loops, from what pg2ref/quantized.py says of the layout; float64 unless the format rounds."""

import numpy as np

GROUP = 32


def bf16(bits):
    """The number that 16 bits stand for."""
    return float(np.array([int(bits) << 16], np.uint32).view(np.float32)[0])


def decode(codes, scales, shape, bits):
    """Every weight of the matrix, a list of rows."""
    outputs, inputs = shape
    rows = []
    for output in range(outputs):
        b, o = divmod(output, 16)
        row = []
        for k in range(inputs):
            if bits == 8:
                number = int(codes[b, k // 4, o, k % 4]) - 128
            else:
                byte = int(codes[b, k // 8, o, k % 4])
                number = (byte >> 4 if k % 8 >= 4 else byte & 15) - 8
            row.append(number * bf16(scales[b, k // GROUP, o]))
        rows.append(row)
    return rows


def fillers(codes, shape, bits):
    """The codes of all inputs and outputs that are not there."""
    outputs, inputs = shape
    found = []
    for b in range(codes.shape[0]):
        for o in range(16):
            for k in range(codes.shape[1] * 4 * 8 // bits):
                if 16 * b + o >= outputs or k >= inputs:
                    byte = int(codes[b, k // 4 if bits == 8 else k // 8, o, k % 4])
                    found.append(byte if bits == 8 else (byte >> 4 if k % 8 >= 4 else byte & 15))
    return found


def error_with_scale(group, scale, lowest, highest):
    """Squared error of a group whose codes are the nearest for a scale."""
    total = 0.0
    for weight in group:
        code = min(max(round(weight / scale), lowest), highest) if scale else 0
        total += (weight - code * scale) ** 2
    return total


def absmax_error(group, highest):
    """Squared error with the usual scale, by which the largest weight has the largest code."""
    scale = max(abs(weight) for weight in group) / highest
    return error_with_scale(group, scale, -highest, highest)


def round_inputs(row):
    """Inputs rounded to int8 in groups of 32, in float32 as the format says; a list of floats."""
    rounded = []
    for start in range(0, len(row), GROUP):
        group = [np.float32(number) for number in row[start : start + GROUP]]
        largest = max(abs(number) for number in group)
        for number in group:
            code = np.rint(number * (np.float32(127) / largest)) if largest else np.float32(0)
            rounded.append(float(code) * float(largest) / 127)
    return rounded


def most_rounding_error(row, weights):
    """What rounding the inputs can change of their product with each row of weights: half a step for each input."""
    bounds = []
    for weight_row in weights:
        bound = 0.0
        for start in range(0, len(row), GROUP):
            step = max(abs(number) for number in row[start : start + GROUP]) / 127
            bound += step / 2 * sum(abs(weight) for weight in weight_row[start : start + GROUP])
        bounds.append(bound)
    return bounds
