r"""Maps from another's names and layouts to the stages of trace.py, declared in TOML; three are in the folder maps/.

    about = "whose names these are"

    [[array]]
    match = 'model\.layers\.(?P<layer>\d+)\.self_attn\.o_proj'   # a regular expression of the whole name
    stage = "text/layer_{layer:02d}/o_proj"                      # its named groups, whole numbers, filled in
    axes = 2                # so many are the stage's: those in front of them have length one, and are dropped
    images = true           # but one in front may count images
    transpose = [1, 0]      # the order of the axes that are left
    stacked = "layer"       # the first axis counts layers, and all of the above is said of the array of each
    goes_into = "layer"     # the array is what this layer reads, so the stage is of the one before

The first entry whose `match` fits counts, and an array that none fits is left out. An entry without `stage` leaves
out what it matches.
"""

import re
import string
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from pg2ref.arrays import Array
from pg2ref.errors import UsageError, brief

SHIPPED = ("transformers", "big_vision", "mlx")
FIELDS: Mapping[str, type] = {
    "match": str,
    "stage": str,
    "axes": int,
    "images": bool,
    "transpose": list,
    "stacked": str,
    "goes_into": str,
}


@dataclass(frozen=True)
class Entry:
    """One rule."""

    match: re.Pattern[str]
    stage: str | None
    axes: int | None
    images: bool
    transpose: tuple[int, ...] | None
    stacked: str | None
    goes_into: str | None


@dataclass(frozen=True)
class NameMap:
    """All rules of a file, in order."""

    name: str
    entries: tuple[Entry, ...]

    def apply(self, name: str, array: Array) -> Iterator[tuple[str, Array]]:
        """The stages that one stored array is, as views of it; none where it is left out.

        Raises:
            UsageError: the array has other axes than the rule says.
        """
        for entry in self.entries:
            if found := entry.match.fullmatch(name):
                if entry.stage is not None:
                    yield from self._stages(entry, name, found, array)
                return

    def _stages(self, entry: Entry, name: str, found: re.Match[str], array: Array) -> Iterator[tuple[str, Array]]:
        assert entry.stage is not None
        numbers = {}
        for group, text in found.groupdict().items():
            if not (text or "").isdecimal():
                raise UsageError(f"map {self.name}: {group} = {text!r} of {name} is no whole number: correct the match")
            numbers[group] = int(text)
        if entry.goes_into is not None:
            numbers[entry.goes_into] -= 1
            if numbers[entry.goes_into] < 0:
                raise UsageError(f"map {self.name}: {name} goes into the first {entry.goes_into}: correct the match")
        of_layers = [(numbers, array)]
        if entry.stacked is not None:
            of_layers = [({**numbers, entry.stacked: layer}, one) for layer, one in enumerate(np.atleast_1d(array))]
        for numbers, one in of_layers:
            images = one if entry.images and one.ndim == (entry.axes or 0) + 1 else [one]
            for index, of_image in enumerate(images):
                prefix = f"image_{index}/" if index else ""
                yield prefix + entry.stage.format(**numbers), self._lay_out(entry, name, of_image)

    def _lay_out(self, entry: Entry, name: str, array: Array) -> Array:
        """The axes of the stage, in its order."""
        extra = array.ndim - entry.axes if entry.axes is not None else 0
        fits = extra >= 0 and array.shape[:extra] == (1,) * extra
        if fits and entry.transpose is not None:
            fits = sorted(entry.transpose) == list(range(array.ndim - extra))
        if not fits:
            wanted = f"axes = {entry.axes}" + (f", transpose = {list(entry.transpose)}" if entry.transpose else "")
            raise UsageError(
                f"map {self.name}: {name} has shape {array.shape}, expected one that {wanted} of the entry "
                f"{entry.match.pattern!r} fit, and a batch of one: change the entry or record one input"
            )
        array = array.reshape(array.shape[extra:])
        return array if entry.transpose is None else array.transpose(entry.transpose)


def load_map(name: str) -> NameMap:
    """A map by its name, one of SHIPPED, or by the path of its file.

    Raises:
        UsageError: there is none, or it is not what the docstring of this module says.
    """
    source = files("pg2ref.parity") / "maps" / f"{name}.toml" if name in SHIPPED else Path(name)
    try:
        table = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(f"map {name!r} is none of {', '.join(SHIPPED)}, and no file: name one of these") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"map {name}: no valid TOML ({error}): correct it") from None
    if strange := set(table) - {"about", "array"}:
        raise UsageError(f"map {name}: {brief(min(strange))}: expected `about` and [[array]] tables: correct the name")
    entries = table.get("array")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"map {name}: expected [[array]] tables, got {sorted(table)}: add one for each kind of array")
    return NameMap(name, tuple(_entry(name, number, fields) for number, fields in enumerate(entries, 1)))


def check_stage(where: str, stage: str, groups: set[str]) -> None:
    """Refuse a name to be filled in that wants more than numbers of the match, {layer} or {layer:02d}."""
    try:
        wanted = list(string.Formatter().parse(stage))
    except ValueError as error:
        raise UsageError(f"{where}: stage = {stage!r}: {error}: write {{layer}} or {{layer:02d}}") from None
    for _, group, form, conversion in wanted:
        if group is None:
            continue
        if group not in groups:
            raise UsageError(f"{where}: stage wants {group!r}, which match has no group for: add (?P<name>...)")
        if conversion or not re.fullmatch(r"(0\dd)?", form or ""):
            raise UsageError(f"{where}: stage = {stage!r}: expected {{{group}}} or {{{group}:02d}}")


def _entry(name: str, number: int, fields: Any) -> Entry:
    where = f"map {name}: [[array]] number {number}"
    if not isinstance(fields, dict) or not isinstance(fields.get("match"), str):
        raise UsageError(f"{where}: expected at least `match`, a regular expression")
    for field, value in fields.items():
        is_known = type(value) is FIELDS.get(field)
        if not is_known or (isinstance(value, list) and not all(type(axis) is int for axis in value)):
            kinds = ", ".join(f"{known} ({kind.__name__})" for known, kind in FIELDS.items())
            raise UsageError(f"{where}: {field} = {value!r}, expected {kinds}")
    try:
        pattern = re.compile(fields["match"])
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{where}: match is no regular expression ({error})") from None
    check_stage(where, fields.get("stage", ""), {*pattern.groupindex, str(fields.get("stacked"))})
    if fields.get("goes_into") not in (None, *pattern.groupindex):
        raise UsageError(f"{where}: goes_into = {fields['goes_into']!r} is no group of match: add (?P<name>...)")
    transpose, axes = fields.get("transpose"), fields.get("axes")
    if (axes or 0) < 0 or sorted(transpose or []) != list(range(len(transpose or []))):
        raise UsageError(f"{where}: axes = {axes}, transpose = {transpose}: expected a number, and each axis once")
    return Entry(
        match=pattern,
        stage=fields.get("stage"),
        axes=axes,
        images=fields.get("images", False),
        transpose=None if transpose is None else tuple(transpose),
        stacked=fields.get("stacked"),
        goes_into=fields.get("goes_into"),
    )
