r"""Maps from another's names and layouts to the stages of trace.py, declared in TOML; three are in the folder maps/.

    about = "whose names these are"

    [[array]]
    match = 'model\.layers\.(?P<layer>\d+)\.self_attn\.o_proj'   # a regular expression of the whole name
    stage = "text/layer_{layer:02d}/o_proj"                      # its named groups, whole numbers, filled in
    squeeze = [0]                # axes of length one that go first: the batch's
    transpose = [1, 0, 2]        # the order of what is left
    stacked = "layer"            # the first axis of what is left is this number: an array of each layer

The first entry whose `match` fits counts, and an array that none fits is left out. An entry without `stage` leaves
out what it matches.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from pg2ref.arrays import Array
from pg2ref.errors import UsageError

SHIPPED = ("transformers", "big_vision", "mlx")
FIELDS = {"match": str, "stage": str, "squeeze": list, "transpose": list, "stacked": str}


@dataclass(frozen=True)
class Entry:
    """One rule."""

    match: re.Pattern[str]
    stage: str | None
    squeeze: tuple[int, ...]
    transpose: tuple[int, ...] | None
    stacked: str | None


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
                numbers = {group: int(text) for group, text in found.groupdict().items()}
                if entry.stage is not None:
                    yield from self._stages(entry, name, numbers, array)
                return

    def _stages(self, entry: Entry, name: str, numbers: dict[str, int], array: Array) -> Iterator[tuple[str, Array]]:
        assert entry.stage is not None
        try:
            array = np.squeeze(array, entry.squeeze)
            if entry.transpose is not None:
                array = array.transpose(entry.transpose)
        except ValueError as error:
            raise UsageError(
                f"map {self.name}: {name} has shape {array.shape}, which does not fit {entry.match.pattern!r} "
                f"({error}): change its squeeze or transpose"
            ) from None
        if entry.stacked is None:
            yield entry.stage.format(**numbers), array
            return
        for number, one in enumerate(array):
            yield entry.stage.format(**numbers, **{entry.stacked: number}), one


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
    entries = table.get("array")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"map {name}: expected [[array]] tables, got {sorted(table)}: add one for each kind of array")
    return NameMap(name, tuple(_entry(name, number, fields) for number, fields in enumerate(entries, 1)))


def _entry(name: str, number: int, fields: Any) -> Entry:
    where = f"map {name}: [[array]] number {number}"
    if not isinstance(fields, dict) or not isinstance(fields.get("match"), str):
        raise UsageError(f"{where}: expected at least `match`, a regular expression")
    for field, value in fields.items():
        kind = FIELDS.get(field)
        if kind is None or not isinstance(value, kind) or (kind is list and not all(type(i) is int for i in value)):
            raise UsageError(
                f"{where}: {field} = {value!r}, expected one of {', '.join(FIELDS)}, lists of whole numbers"
            )
    try:
        pattern = re.compile(fields["match"])
        stacked = fields.get("stacked")
        numbers = dict.fromkeys((*pattern.groupindex, *([stacked] if stacked else [])), 0)
        fields.get("stage", "").format(**numbers)
    except re.error as error:
        raise UsageError(f"{where}: match is no regular expression ({error})") from None
    except (KeyError, IndexError, ValueError) as error:
        raise UsageError(f"{where}: stage wants {error}, which match has no group for: add (?P<name>...)") from None
    transpose = fields.get("transpose")
    return Entry(
        match=pattern,
        stage=fields.get("stage"),
        squeeze=tuple(fields.get("squeeze", ())),
        transpose=None if transpose is None else tuple(transpose),
        stacked=stacked,
    )
