"""How much of each pixel lies inside a polygon, sample by sample, in fractions."""

from fractions import Fraction


def coverage(contours: list[list[list[int]]], size_px: int, samples: int, fine: int) -> list[list[int]]:
    """Samples of each pixel inside by the even-odd rule; points are in 1/fine of a sample."""
    return [
        [
            sum(
                _is_inside(contours, (x * samples + i) * fine + fine // 2, (y * samples + j) * fine + fine // 2)
                for j in range(samples)
                for i in range(samples)
            )
            for x in range(size_px)
        ]
        for y in range(size_px)
    ]


def _is_inside(contours: list[list[list[int]]], x: int, y: int) -> bool:
    """An odd number of edges is crossed on the way to the left; points on an edge are right of it."""
    crossed = 0
    for contour in contours:
        for (x0, y0), (x1, y1) in zip(contour, contour[1:] + contour[:1], strict=True):
            if (y0 <= y) != (y1 <= y):
                crossed += x >= x0 + (y - y0) * Fraction(x1 - x0, y1 - y0)
    return crossed % 2 == 1
