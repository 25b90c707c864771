"""Which adapters the run of a record had."""

from collections.abc import Sequence
from pathlib import Path

from pg2ref.adapters.identity import Identity, are_same, identify, listed
from pg2ref.errors import UsageError
from pg2ref.parity.records import Record, json_fact


def adapters_used(record: Record) -> list[Identity] | None:
    """What a trace says of its adapters; None where nothing is said, as by dumps of ports."""
    model = json_fact(record, "model")
    adapters = model.get("adapters") if isinstance(model, dict) else None
    is_list = isinstance(adapters, list) and all(isinstance(one, dict) for one in adapters)
    return adapters if is_list else None


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
