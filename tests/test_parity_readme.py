"""The page of the museum says what the collection holds, and how each bug is named as the tests find it."""

import re
from pathlib import Path

import museum
import pytest

from pg2ref.parity.bugs.collection import BUGS
from pg2ref.parity.bugs.run import Bug

FOLDER = Path(__file__).parent.parent / "pg2ref" / "parity"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


def table(name: str) -> list[list[str]]:
    """The cells of each row, below the head."""
    (text,) = re.findall(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", PAGE, flags=re.DOTALL)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()[2:]]


def test_the_museum_is_that_of_the_page() -> None:
    rows = table("museum")
    assert [(name, summary) for name, summary, _ in rows] == [(f"`{bug.name}`", bug.summary) for bug in BUGS.values()]
    for (_, _, seen), bug in zip(rows, BUGS.values(), strict=True):
        assert all(place in seen for place in (*bug.seen, *bug.links)), bug.name


def test_the_table_of_the_diagnosis_has_every_bug_and_every_other_error() -> None:
    names = [row[0] for row in table("confusion")]
    assert names[: len(BUGS)] == list(BUGS)
    assert names[len(BUGS) + 1 :] == [f"*{name}*" for name in museum.OTHER_ERRORS]


def test_what_the_table_says_of_every_stage_is_what_the_tests_assert() -> None:
    rows = table("confusion")
    assert all(row[1] == "✓" for row in rows[: len(BUGS)])
    assert all(set(row[1:5]) <= {"unknown", "clean"} for row in rows[len(BUGS) + 1 :])


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+\.py|bugs/)`", PAGE))))
def test_files_of_the_page_exist(name: str) -> None:
    root = FOLDER.parent.parent if name.startswith("tools/") else FOLDER
    assert (root / name).exists()


@pytest.mark.parametrize("bug", BUGS.values(), ids=lambda bug: bug.name)
def test_a_bug_says_what_it_is_in_a_line(bug: Bug) -> None:
    assert re.fullmatch(r"[a-z0-9-]+", bug.name)
    assert bug.summary.endswith(".")
    assert len(bug.summary) < 110
    assert all(re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/issues/\d+|[\w., /]+", link) for link in bug.links)
