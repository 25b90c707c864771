"""The mask decoder in Python numbers, one output at a time, from big_vision's description of it."""

from typing import Any


def convolve(image: Any, weight: Any, bias: Any) -> list[list[list[float]]]:
    """image[y][x][c], weight[o][c][ky][kx]; output pixel y reads rows y - k // 2 to y + k // 2, zeros outside."""
    size, height, width = len(weight[0][0]), len(image), len(image[0])
    result = []
    for y in range(height):
        row = []
        for x in range(width):
            pixel = []
            for o in range(len(weight)):
                total = float(bias[o])
                for ky in range(size):
                    for kx in range(size):
                        row_in, column_in = y + ky - size // 2, x + kx - size // 2
                        if 0 <= row_in < height and 0 <= column_in < width:
                            for c, value in enumerate(image[row_in][column_in]):
                                total += float(value) * float(weight[o][c][ky][kx])
                pixel.append(total)
            row.append(pixel)
        result.append(row)
    return result


def convolve_transposed(image: Any, weight: Any, bias: Any) -> list[list[list[float]]]:
    """Size 4, stride 2, padding 1, weight[c][o][ky][kx]: output row r gathers the inputs y with r = 2 y + ky - 1."""
    height, width, outputs = len(image), len(image[0]), len(weight[0])
    result = []
    for r in range(2 * height):
        row = []
        for s in range(2 * width):
            pixel = [float(bias[o]) for o in range(outputs)]
            for ky in range(4):
                for kx in range(4):
                    y, odd_y = divmod(r - ky + 1, 2)
                    x, odd_x = divmod(s - kx + 1, 2)
                    if odd_y or odd_x or not (0 <= y < height and 0 <= x < width):
                        continue
                    for c, value in enumerate(image[y][x]):
                        for o in range(outputs):
                            pixel[o] += float(value) * float(weight[c][o][ky][kx])
            row.append(pixel)
        result.append(row)
    return result


def relu(image: Any) -> list[list[list[float]]]:
    """Negative numbers become 0."""
    return [[[max(value, 0.0) for value in pixel] for pixel in row] for row in image]


def decode(arrays: dict[str, Any], codes: list[int]) -> list[list[float]]:
    """16 codes to 64 rows of 64 numbers, `arrays` by the names of the published file."""

    def conv(image: Any, name: str) -> Any:
        return convolve(image, arrays[f"{name}.weight"].tolist(), arrays[f"{name}.bias"].tolist())

    def grow(image: Any, name: str) -> Any:
        return relu(convolve_transposed(image, arrays[f"{name}.weight"].tolist(), arrays[f"{name}.bias"].tolist()))

    table = arrays["_vq_vae._embedding"].tolist()
    image: Any = [[table[codes[4 * y + x]] for x in range(4)] for y in range(4)]
    image = relu(conv(image, "decoder.0"))
    for block in ("decoder.2.net", "decoder.3.net"):
        inner = conv(relu(conv(relu(conv(image, f"{block}.0")), f"{block}.2")), f"{block}.4")
        image = [
            [[a + b for a, b in zip(p, q, strict=True)] for p, q in zip(r, s, strict=True)]
            for r, s in zip(image, inner, strict=True)
        ]
    for name in ("decoder.4", "decoder.6", "decoder.8", "decoder.10"):
        image = grow(image, name)
    return [[pixel[0] for pixel in row] for row in conv(image, "decoder.12")]
