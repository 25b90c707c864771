"""Which adapters the runs of two records had: stages that diverge mean little where these differ."""

import json
from collections.abc import Sequence
from pathlib import Path

from pg2ref.adapters.identity import Identity, are_same, identify, listed
from pg2ref.errors import UsageError
from pg2ref.parity.records import Record


def adapters_used(record: Record) -> list[Identity] | None:
    """What a trace says of its adapters; None where nothing is said, as by dumps of ports."""
    try:
        adapters = json.loads(record.facts["model"])["adapters"]
    except (KeyError, TypeError, ValueError):
        return None
    is_list = isinstance(adapters, list) and all(isinstance(one, dict) for one in adapters)
    return adapters if is_list else None


def adapters_apart(reference: Record, other: Record) -> str | None:
    """How the adapters of two runs differ; None where they do not, or where one of both says nothing."""
    expected, found = adapters_used(reference), adapters_used(other)
    if expected is None or found is None or are_same(expected, found):
        return None
    return f"REFERENCE was run with {listed(expected)}, OTHER with {listed(found)}"


def check_adapters(reference: Record, folders: Sequence[str | Path]) -> None:
    """Refuse to run the reference's model with other adapters than it had.

    Raises:
        UsageError: they are others.
    """
    expected = adapters_used(reference)
    if expected is not None and not are_same(expected, found := [identify(folder) for folder in folders]):
        raise UsageError(
            f"{reference.name} was recorded with other adapters: expected {listed(expected)}, got {listed(found)}: "
            "give its own with --adapter"
        )
