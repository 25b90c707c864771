"""What two runs had that differs: stages that diverge mean little where model, adapters or answer are others."""

from typing import Any

from pg2ref.adapters.identity import are_same, listed
from pg2ref.errors import brief
from pg2ref.parity.adapters_used import adapters_used
from pg2ref.parity.records import Record, json_fact


def runs_apart(reference: Record, other: Record) -> str | None:
    """How the runs differ; None where they do not, or where one of both says nothing."""
    return models_apart(reference, other) or adapters_apart(reference, other) or answers_apart(reference, other)


def models_apart(reference: Record, other: Record) -> str | None:
    """The first field of the config that has another value."""
    expected, found = (dict(_fields("", json_fact(record, "config"))) for record in (reference, other))
    if not expected or not found:
        return None
    name = next((name for name in sorted(expected | found) if expected.get(name) != found.get(name)), None)
    if name is None:
        return None
    return (
        f"another model: {brief(name)} is {brief(expected.get(name))} in REFERENCE, {brief(found.get(name))} in OTHER"
    )


def adapters_apart(reference: Record, other: Record) -> str | None:
    """Which adapters each had."""
    expected, found = adapters_used(reference), adapters_used(other)
    if expected is None or found is None or are_same(expected, found):
        return None
    return f"other adapters: REFERENCE was run with {listed(expected)}, OTHER with {listed(found)}"


def answers_apart(reference: Record, other: Record) -> str | None:
    """The first token of the answer that is another: later steps were given it."""
    expected, found = json_fact(reference, "answer_ids"), json_fact(other, "answer_ids")
    if not isinstance(expected, list) or not isinstance(found, list):
        return None
    for place, (a, b) in enumerate(zip(expected, found, strict=False), 1):
        if a != b:
            return f"another answer: token {place} is {brief(a)} in REFERENCE, {brief(b)} in OTHER"
    return None


def _fields(prefix: str, value: Any) -> list[tuple[str, Any]]:
    """Values of nested objects by their dotted names."""
    if not isinstance(value, dict):
        return [(prefix, value)] if prefix else []
    return [pair for key, one in value.items() for pair in _fields(f"{prefix}.{key}" if prefix else str(key), one)]
