"""Makes what `pg2ref/fonts/` holds out of DejaVu Sans Bold 2.37: a small font, and outlines for the demo's scenes.

    pip install fonttools
    python tools/make_font.py /usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf

The font, for labels on pictures, keeps Latin, Greek, Cyrillic and punctuation. The outlines, for words in scenes, are
A to Z and 0 to 9 as polygons of whole numbers: a scene must come out the same whatever FreeType draws it.
"""

import json
from pathlib import Path

import click
from fontTools.pens.basePen import BasePen
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

FONTS = Path(__file__).parent.parent / "pg2ref" / "fonts"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
KEPT = [*range(0x20, 0x7F), *range(0xA0, 0x180), *range(0x370, 0x530), *range(0x2010, 0x2027), 0x20AC, 0x25A1, 0xFFFD]
CURVE_PIECES = 4


class PolygonPen(BasePen):
    """Writes down a glyph's outline, curves cut into straight pieces, y downwards from the top of the capitals."""

    def __init__(self, top: int) -> None:
        super().__init__(None)
        self.top = top
        self.contours: list[list[tuple[int, int]]] = []

    def _add(self, point: tuple[float, float]) -> None:
        self.contours[-1].append((round(point[0]), round(self.top - point[1])))

    def _moveTo(self, point: tuple[float, float]) -> None:
        self.contours.append([])
        self._add(point)

    def _lineTo(self, point: tuple[float, float]) -> None:
        self._add(point)

    def _qCurveToOne(self, control: tuple[float, float], end: tuple[float, float]) -> None:
        start = self._getCurrentPoint()
        for piece in range(1, CURVE_PIECES + 1):
            t = piece / CURVE_PIECES
            weights = ((1 - t) ** 2, 2 * t * (1 - t), t * t)
            points = (start, control, end)
            self._add(tuple(sum(w * p[axis] for w, p in zip(weights, points, strict=True)) for axis in (0, 1)))


def outlines(font: TTFont) -> dict[str, object]:
    """Height of the capitals, and each letter's advance and contours, in font units."""
    glyphs, names = font.getGlyphSet(), font.getBestCmap()
    top = font["glyf"][names[ord("H")]].yMax
    letters = {}
    for letter in LETTERS:
        glyph = glyphs[names[ord(letter)]]
        pen = PolygonPen(top)
        glyph.draw(pen)
        letters[letter] = {"advance": round(glyph.width), "contours": pen.contours}
    return {"height": top, "letters": letters}


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False))
def main(source: str) -> None:
    """Read DejaVuSans-Bold.ttf, write the subset and the outlines."""
    font = TTFont(source)
    (FONTS / "outlines.json").write_text(json.dumps(outlines(font), separators=(",", ":")) + "\n")
    names = [0, 1, 2, 4, 6, 13, 14]  # copyright, names and licence
    subsetter = Subsetter(Options(hinting=False, notdef_outline=True, layout_features=[], name_IDs=names))
    subsetter.populate(unicodes=KEPT)
    subsetter.subset(font)
    font.save(FONTS / "DejaVuSans-Bold-subset.ttf")


if __name__ == "__main__":
    main()
