"""Changes of bytes and of JSON values, by a seeded generator: the same seed makes the same input again."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rng = random.Random
MOST_BYTES = 1 << 16  # of one input: small ones find more in the same time
WORDS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
DIGITS = re.compile(rb"-?\d+")
HOSTILE_TEXTS = (
    "",
    " ",
    "\0",
    "\n",
    "\x1b[2J",
    "../x",
    "a" * 300,
    "\u202e",
    "\ud800",
    "é",
    "0",
    "NaN",
    "<loc0000>",
    "{}",
)
HOSTILE_NUMBERS = (0, -1, 1, 2, 3, 31, 64, 255, 2**24, 2**31, 2**63, 2**64, 10**40, 0.5, -0.0, 1e-300, 1e308)
NOT_NUMBERS = (float("nan"), float("inf"), -float("inf"))


def mutate(content: bytes, rng: Rng, others: Sequence[bytes]) -> bytes:
    """One to eight changes of a valid input, from a bit to half of another input."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        rng.choice(CHANGES)(changed, rng, others)
    return bytes(changed[:MOST_BYTES])


def _place(changed: bytearray, rng: Rng) -> int:
    """Anywhere, and the first bytes, where headers lie, more often."""
    limit = len(changed) if rng.random() < 0.6 else min(len(changed), 64)
    return rng.randrange(limit + 1)


def _flip(changed: bytearray, rng: Rng, others: Sequence[bytes]) -> None:
    if changed:
        changed[min(_place(changed, rng), len(changed) - 1)] ^= 1 << rng.randrange(8)


def _set(changed: bytearray, rng: Rng, others: Sequence[bytes]) -> None:
    if changed:
        changed[min(_place(changed, rng), len(changed) - 1)] = rng.choice((0, 255, 128, 32, rng.randrange(256)))


def _word(changed: bytearray, rng: Rng, others: Sequence[bytes]) -> None:
    size, place = rng.choice((2, 4, 8)), _place(changed, rng)
    word = (rng.choice(WORDS) + rng.choice((0, 0, 1, -1))) % (1 << 8 * size)
    changed[place : place + size] = word.to_bytes(size, rng.choice(("little", "big")))


def _number(changed: bytearray, rng: Rng, others: Sequence[bytes]) -> None:
    """A number that is written out."""
    if found := list(DIGITS.finditer(bytes(changed))):
        begin, end = rng.choice(found).span()
        changed[begin:end] = str(rng.choice((*WORDS, -1, 10**30, rng.randrange(2000)))).encode()


def _delete(changed: bytearray, rng: Rng, others: Sequence[bytes]) -> None:
    place = _place(changed, rng)
    del changed[place : place + rng.choice((1, 2, 8, 64))]


def _repeat(changed: bytearray, rng: Rng, others: Sequence[bytes]) -> None:
    place = _place(changed, rng)
    piece = changed[place : place + rng.choice((1, 4, 16, 256))]
    changed[place:place] = piece * rng.choice((1, 2, 50))


def _insert(changed: bytearray, rng: Rng, others: Sequence[bytes]) -> None:
    place = _place(changed, rng)
    changed[place:place] = rng.randbytes(rng.choice((1, 2, 8, 64)))


def _cut(changed: bytearray, rng: Rng, others: Sequence[bytes]) -> None:
    del changed[_place(changed, rng) :]


def _splice(changed: bytearray, rng: Rng, others: Sequence[bytes]) -> None:
    other = rng.choice(others)
    place, begin = _place(changed, rng), rng.randrange(len(other) + 1)
    changed[place:] = other[begin:]


CHANGES = (_flip, _flip, _set, _word, _word, _number, _delete, _repeat, _insert, _cut, _splice)


def mutate_json(value: Any, rng: Rng) -> Any:
    """A copy of a JSON value with one to four of its parts replaced, removed, renamed or repeated."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _with_change(value, rng)
    return value


def _with_change(value: Any, rng: Rng) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        changed, key = dict(value), rng.choice(list(value))
        how = rng.random()
        if how < 0.75:
            changed[key] = _with_change(value[key], rng)
        elif how < 0.85:
            del changed[key]
        else:
            changed[rng.choice((*HOSTILE_TEXTS, key + "_", key.upper()))] = changed.pop(key)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        how = rng.random()
        middle = [_with_change(value[at], rng)] if how < 0.7 else [value[at]] * rng.choice((0, 0, 2, 40))
        return [*value[:at], *middle, *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.4:
        return value + rng.choice((-1, 1, value, -value, 7))
    return hostile_json(rng)


def hostile_json(rng: Rng, depth: int = 2) -> Any:
    """A value of any kind that nobody expects."""
    kind = rng.randrange(8 if depth else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind in (1, 2):
        return rng.choice(HOSTILE_NUMBERS)
    if kind == 3:
        return rng.choice(NOT_NUMBERS)
    if kind in (4, 5):
        return rng.choice(HOSTILE_TEXTS)
    if kind == 6:
        return [hostile_json(rng, depth - 1) for _ in range(rng.choice((0, 1, 3)))]
    return {rng.choice(HOSTILE_TEXTS): hostile_json(rng, depth - 1) for _ in range(rng.choice((0, 1, 3)))}


def json_bytes(value: Any, rng: Rng) -> bytes:
    """JSON as a program may have written it, well or badly: doubled keys, deep nesting, long numbers, UTF-16."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    how = rng.random()
    if how < 0.02:
        text = "[" * 100_000 if rng.random() < 0.5 else text.replace("{", '{"a":' * 5000 + "{", 1)
    elif how < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]
    elif how < 0.08:
        text = text.replace("1", "1" * 5000, 1)
    return text.encode("utf-8", "surrogatepass") if how < 0.98 else text.encode("utf-16", "surrogatepass")


def two_files(first: bytes, second: bytes) -> bytes:
    """Two files as one input."""
    return len(first).to_bytes(4, "little") + first + second


def lay_out(content: bytes, first: Path, second: Path) -> None:
    """Write the two files of an input; an empty one is left out."""
    end = 4 + int.from_bytes(content[:4], "little")
    for path, part in ((first, content[4:end]), (second, content[end:])):
        if part:
            path.write_bytes(part)
