"""What is said of the built-in model is what was measured, and what README shows of the first run can be made."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import click
import guard_rates
import make_readme_picture
import model_card
import numpy as np
import photographs
import pytest
import results
import scene_statistics
import table
from PIL import Image

from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.checkpoint.tensor_table import expected_shapes
from pg2ref.demo import builtin

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = results.read_results()


def test_card_and_readme_say_what_was_measured() -> None:
    assert (builtin.FOLDER / "README.md").read_text(encoding="utf-8") == model_card.card(MEASURED)
    assert model_card.with_summary(README, MEASURED) == README
    assert table.table(MEASURED.rows, MEASURED.scenes) in README
    changed = MEASURED._replace(rows=MEASURED.rows | {"count": (0.123, 7)})
    assert "| count | 0.95 | 0.123 (missed) | 7 |" in model_card.with_summary(README, changed)
    assert "| count | 0.95 | 0.123 (missed) | 7 |" in model_card.card(changed)


def test_every_bar_was_measured_on_every_scene() -> None:
    assert set(table.BARS) <= set(MEASURED.rows)
    assert MEASURED.guard[guard_rates.SCENES][1] == MEASURED.scenes
    shapes = expected_shapes(load_checkpoint(builtin.FOLDER).config)
    assert MEASURED.parameters == sum(int(np.prod(shape)) for shape in shapes.values())


def test_the_guard_keeps_what_was_asked_of_it() -> None:
    warned, scenes = MEASURED.guard[guard_rates.SCENES]
    assert warned / scenes <= 0.05
    warned, count = guard_rates.of_photographs(MEASURED.guard)
    assert count >= 100
    assert warned / count >= 0.95


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    results.write_results(MEASURED, tmp_path / "results.json")
    assert results.read_results(tmp_path / "results.json") == MEASURED


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one large picture and one small, in the place of all."""
    folder = tmp_path / "pictures" / "data"
    folder.mkdir(parents=True)
    for name, size in (("large.png", (300, 150)), ("small.png", (32, 32))):
        Image.new("RGB", size, "red").save(folder / name)
    spec = ModuleSpec("pictures", None, origin=str(folder.parent / "__init__.py"))
    monkeypatch.setattr(photographs, "find_spec", lambda name: spec if name == "pictures" else None)
    monkeypatch.setattr(photographs, "FILES", {"pictures": ("data", "*.png")})
    return folder


def test_photographs_are_taken_whole_and_in_parts(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(one.kind, one.picture.size) for one in photographs.photographs()]
    parts = [("pictures, parts", (100, 100))] * 2
    assert found == [("pictures, whole", (300, 150)), *parts, ("pictures, whole", (32, 32))]
    rates = guard_rates.guard_rates(builtin.FOLDER, 3)
    assert {kind: count for kind, (_, count) in rates.items()} == {
        guard_rates.SCENES: 3,
        "pictures, whole": 2,
        "pictures, parts": 2,
    }
    assert guard_rates.of_photographs(rates) == (4, 4)  # red all over is unlike any scene
    monkeypatch.setattr(photographs, "FILES", {"no_such_package": ("data", "*.png")})
    with pytest.raises(click.ClickException, match="pip install"):
        next(photographs.photographs())


def test_the_limit_lets_through_what_it_says(rng: np.random.Generator) -> None:
    scenes_ND = rng.normal(size=(4000, 6)) * [1, 2, 3, 4, 5, 6] + 7
    found = scene_statistics.statistics(scenes_ND[:2000], scenes_ND[2000:])
    familiar = [found.distance(one_D[None]) <= 1 for one_D in rng.normal(size=(4000, 6)) * [1, 2, 3, 4, 5, 6] + 7]
    assert np.mean(familiar) == pytest.approx(0.97, abs=0.012)
    away_DD = 7 + 9 * np.eye(6)
    assert found.distance(away_DD[:1]) > 1  # far in the narrowest direction
    assert found.distance(away_DD[5:]) < 1


def test_the_first_run_is_shown(tmp_path: Path) -> None:
    """The tool's own run, on this processor; the picture in README may show another answer."""
    readme = tmp_path / "README.md"
    readme.write_text(make_readme_picture.with_output(README, "nothing"), encoding="utf-8")
    assert readme.read_text(encoding="utf-8") != README
    make_readme_picture.make(tmp_path / "made.png", readme)
    printed = readme.read_text(encoding="utf-8")
    begin, end = make_readme_picture.MARKS
    lines = printed.split(begin)[1].split(end)[0].strip().splitlines()
    assert lines[1] == "caption en"
    assert lines[3].startswith("detect ")
    made, shown = (np.asarray(Image.open(path)) for path in (tmp_path / "made.png", make_readme_picture.PICTURE))
    assert made.shape == shown.shape == (224, 2 * 224 + 8, 3)
    assert make_readme_picture.PICTURE.stat().st_size < 100_000
    assert make_readme_picture.PICTURE.relative_to(ROOT).as_posix() in README
