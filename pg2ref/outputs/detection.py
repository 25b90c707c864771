"""Step 9 of 9, first half: `<loc>` and `<seg>` in an answer become objects; result.py is the second.

    <loc0100><loc0200><loc0300><loc0400> cat ; <loc...> <loc...> <loc...> <loc...> dog
    <loc0100><loc0200><loc0300><loc0400><seg000> ... 16 of them ... <seg127> cat

Four locations are y0 x0 y1 x1 in 1024 steps over the picture, whatever its shape; 16 codes are a mask inside the box.
What stands behind them up to ` ; ` or the next box is the label, in any script, or nothing. A model may write
anything: every location and code of the answer ends up in an object or in a sentence that says why not.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pg2ref.inputs.tokenizer import LOCATION_OR_SEGMENT
from pg2ref.policy import LOC_SCALES

BOX_TOKENS, MASK_TOKENS = 4, 16
TOKEN = re.compile(LOCATION_OR_SEGMENT, re.ASCII)
_RUN = re.compile(rf"(?:{LOCATION_OR_SEGMENT})(?:\s*(?:{LOCATION_OR_SEGMENT}))*", re.ASCII)
_DAMAGED = re.compile(r"<(?:loc|seg)[^<>\s]*>?|<(?:l|lo|s|se)?$")
_SEPARATOR = re.compile(r"(?:^|(?<=\s));(?=\s|$)")
_MOST_SHOWN = 60
_MOST_QUOTED = 120  # where characters are escaped, which makes up to ten of one


class Detection(NamedTuple):
    """One object as the answer gives it."""

    label: str  # may be empty
    box_yxyx_bins: tuple[int, int, int, int]  # 0 to 1023
    codes: tuple[int, ...]  # 16 of 0 to 127, or none
    first_token: int  # its first location is this one of the answer's <loc> and <seg> tokens, counted from 0


class Parsed(NamedTuple):
    """What an answer holds, and what of it could not be read."""

    detections: tuple[Detection, ...]
    problems: tuple[str, ...]


def parse(text: str) -> Parsed:
    """The objects of an answer in their order; plain text has none, and no problems either.

    Boxes without extent are problems: evaluators count them as wrong (big_vision
    evaluators/proj/paligemma/transfers/segmentation.py).
    """
    detections: list[Detection] = []
    problems: list[str] = []
    runs = list(_RUN.finditer(text))
    if not runs and "<loc" not in text and "<seg" not in text:
        return Parsed((), ())
    starts = [*(run.start() for run in runs), len(text)]
    label, leftover = _label_and_rest(text[: starts[0]])
    problems += [f"words before the first box: {_shown(label)}"] if label else []
    problems += leftover
    counted = 0
    for run, next_start in zip(runs, starts[1:], strict=True):
        label, leftover = _label_and_rest(text[run.end() : next_start])
        tokens = TOKEN.findall(run.group())
        found, faults = _objects(tokens, label, counted)
        detections += found
        problems += [*faults, *leftover]
        counted += len(tokens)
    return Parsed(tuple(detections), tuple(problems))


def box_xyxy_px(
    box_yxyx_bins: Sequence[int], size: tuple[int, int], loc_scale: int
) -> tuple[float, float, float, float]:
    """A box in pixels of the original picture: x0, y0, x1, y1, for a size of (width, height).

    `loc_scale` is what stands for the far edge: 1023, as the training targets were written (big_vision
    pp/proj/paligemma/segmentation.py), or 1024, as published demos read them.
    """
    if loc_scale not in LOC_SCALES:
        raise ValueError(f"loc_scale is {loc_scale}, expected one of {LOC_SCALES}")
    width, height = size
    y0, x0, y1, x1 = (step / loc_scale for step in box_yxyx_bins)
    return x0 * width, y0 * height, x1 * width, y1 * height


def _label_and_rest(text: str) -> tuple[str, list[str]]:
    """The words up to a separator, and what else stands between two boxes as problems."""
    damaged = _DAMAGED.findall(text)
    problems = [f"not a location or a code: {_shown(one)}" for one in damaged]
    label, *others = _SEPARATOR.split(_DAMAGED.sub(" ", text).strip())
    problems += [f"words without a box: {_shown(words.strip())}" for words in others if words.strip()]
    return label.strip(), problems


def _objects(tokens: list[str], label: str, counted: int) -> tuple[list[Detection], list[str]]:
    """The objects of one unbroken run of tokens; a label belongs to the last of them."""
    found: list[Detection] = []
    problems: list[str] = []
    for begin, end in _groups(tokens):
        group = tokens[begin:end]
        locations = [int(token[4:8]) for token in group if token[1] == "l"]
        codes = tuple(int(token[4:7]) for token in group if token[1] == "s")
        name = label if end == len(tokens) else ""
        shown = _shown("".join(group) + (f" {name}" if name else ""))
        if len(locations) < BOX_TOKENS:
            problems.append(f"a box needs 4 locations, got {len(locations)}: {shown}")
            continue
        y0, x0, y1, x1 = locations
        if y1 <= y0 or x1 <= x0:
            problems.append(f"the box has no extent: {shown}")
            continue
        if codes and len(codes) != MASK_TOKENS:
            problems.append(f"a mask needs 16 codes, got {len(codes)}, so the box is without one: {shown}")
            codes = ()
        found.append(Detection(name, (y0, x0, y1, x1), codes, counted + begin))
    return found, problems


def _groups(tokens: list[str]) -> Iterator[tuple[int, int]]:
    """Where each object of a run begins and ends: up to four locations, then up to 16 codes."""
    begin = 0
    while begin < len(tokens):
        end = begin
        while end < len(tokens) and end - begin < BOX_TOKENS and tokens[end][1] == "l":
            end += 1
        boxed = end
        while end < len(tokens) and end - boxed < MASK_TOKENS and tokens[end][1] == "s":
            end += 1
        yield begin, end
        begin = end


def _shown(words: str) -> str:
    """A piece of an answer for a message of one line."""
    short = words if len(words) <= _MOST_SHOWN else words[: _MOST_SHOWN - 3] + "..."
    quoted = repr(short)
    return quoted if len(quoted) <= _MOST_QUOTED else f"{quoted[: _MOST_QUOTED - 4]}...{quoted[0]}"
