"""A bar for each measure: the full width is the limit, the filled part what was reached."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pg2ref.benchmark.report import Limit, Measure, Report
from pg2ref.errors import Pg2RefError, UsageError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".pdf")
WIDTH_PX, MARGIN_PX = 1000, 30
NAME_PX, BAR_PX, ROW_PX = 110, 470, 54  # the column of names, the full bar, the distance of two bars
BAR_HEIGHT_PX, TITLE_PX = 30, 84
TEXT_PX, SMALL_PX = 20, 15  # font sizes
PAPER, INK, FAINT, EMPTY, FILLED = "#ffffff", "#1b1f24", "#59636e", "#e4e8ec", "#2f6fb2"


class Bar(NamedTuple):
    """One row of the picture."""

    name: str
    share: float
    number: str
    detail: str


def bars_of(report: Report) -> Iterator[Bar]:
    """The model's parts as shares of their limits; without a model, each limit's median as a share of its best run."""
    for measure in report.measures:
        yield Bar(measure.name, measure.share, _in_words(measure), f"{measure.share:.0%} of {measure.limited_by}")
    for limit in () if report.measures else report.limits:
        best = max(limit.rates)
        emulated = ", emulated" if limit.is_emulated else ""
        yield Bar(limit.name, limit.rate / best, f"{limit.rate / 1e9:.1f} {limit.unit}", f"median{emulated}")


def _in_words(measure: Measure) -> str:
    unit = "ms/token" if measure.name == "decode" else "ms"
    return f"{1e3 * measure.median_seconds:,.0f} {unit}, {measure.rate / 1e9:.1f} {measure.unit}"


def draw(report: Report) -> Image.Image:
    """The picture."""
    bars = list(bars_of(report))
    picture = Image.new("RGB", (WIDTH_PX, TITLE_PX + len(bars) * ROW_PX + TITLE_PX), PAPER)
    pen = ImageDraw.Draw(picture)
    text, small = ImageFont.load_default(TEXT_PX), ImageFont.load_default(SMALL_PX)
    heading = report.model_heading() or "limits of this machine"
    room = WIDTH_PX - 2 * MARGIN_PX
    fitting = ImageFont.load_default(min(TEXT_PX, TEXT_PX * room / pen.textlength(heading, text)))
    pen.text((MARGIN_PX, 20), heading, INK, fitting)
    pen.text((MARGIN_PX, 50), report.heading(), FAINT, small)
    left = MARGIN_PX + NAME_PX
    for row, bar in enumerate(bars):
        top = TITLE_PX + row * ROW_PX + (ROW_PX - BAR_HEIGHT_PX) // 2
        middle = top + BAR_HEIGHT_PX // 2
        pen.text((MARGIN_PX, middle), bar.name, INK, text, anchor="lm")
        pen.rectangle((left, top, left + BAR_PX, top + BAR_HEIGHT_PX), EMPTY)
        pen.rectangle((left, top, left + round(BAR_PX * min(bar.share, 1)), top + BAR_HEIGHT_PX), FILLED)
        pen.text((left + BAR_PX + 14, top - 4), bar.number, INK, text)
        pen.text((left + BAR_PX + 14, top + 20), bar.detail, FAINT, small)
    bottom = TITLE_PX + len(bars) * ROW_PX + 14
    for line, note in enumerate(notes_of(report)):
        pen.text((MARGIN_PX, bottom + line * 24), note, FAINT, small)
    return picture


def notes_of(report: Report) -> tuple[str, str]:
    """What the full width means."""
    if not report.measures:
        return "Full width: the best run.", ""
    limits = ", ".join(f"{_limit_in_words(limit)}" for limit in report.limits)
    return "Full width: the limit of this machine, measured in the same run.", f"Limits: {limits}."


def _limit_in_words(limit: Limit) -> str:
    return f"{limit.name}{' (emulated)' if limit.is_emulated else ''} {limit.rate / 1e9:.1f} {limit.unit}"


def check_path(path: Path) -> None:
    """Raises UsageError where no picture could be written: worth knowing before anything is measured."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"--plot {path}: expected a name that ends in {', '.join(ENDINGS)}, got {path.suffix!r}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: expected a folder that exists, {path.parent} does not; make it first")


def save(report: Report, path: Path) -> None:
    """Draw, write to a temporary name beside `path`, rename.

    Raises:
        Pg2RefError: the file system refuses.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        draw(report).save(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise Pg2RefError(f"--plot {path}: expected a place to write to, got {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
