"""What the README and the docstrings say about the project is true of its files."""

import ast
import re
from pathlib import Path

import click
import pytest

from pg2ref.cli.main import COMMANDS, group

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
STEPS = re.findall(r"^\| (\d) \| `([^`]+)`", README, flags=re.MULTILINE)


def test_the_reading_path_has_nine_steps() -> None:
    assert [int(step) for step, _ in STEPS] == list(range(1, 10))


@pytest.mark.parametrize(("step", "path"), STEPS)
def test_each_step_says_where_it_stands(step: str, path: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    assert docstring.startswith(f"Step {step} of 9")
    named = re.findall(r"Next: (?:\w+/)?(\w+\.py)", docstring)
    assert named[:1] == [Path(after).name for number, after in STEPS if int(number) == int(step) + 1]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:pg2ref|tests|tools)/[\w/.]+)", README))))
def test_paths_in_the_readme_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_readme_names_every_command() -> None:
    assert set(re.findall(r"^pg2ref (\w+)", README, flags=re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert f"pg2ref {name}" in (command.help or "")
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_options_in_the_readme_exist() -> None:
    known = {
        option
        for name in COMMANDS
        for parameter in group.get_command(click.Context(group), name).params
        for option in parameter.opts
    }  # type: ignore[union-attr]
    used = {
        option
        for line in re.findall(r"^pg2ref .*", README, flags=re.MULTILINE)
        for option in re.findall(r"(?<= )--?[a-z][\w-]*", line)
    }
    assert used
    assert used <= known


KERNELS = ROOT / "kernels"
KERNELS_README = (KERNELS / "README.md").read_text(encoding="utf-8")
IN_BACKTICKS = sorted(set(re.findall(r"`([^`\n]+)`", KERNELS_README)))


@pytest.mark.parametrize("name", [name for name in IN_BACKTICKS if name.endswith((".py", "/"))])
def test_files_in_the_readme_of_the_kernels_exist(name: str) -> None:
    assert (ROOT / name).exists() if name.startswith(("tools/", "tests/")) else (KERNELS / name).exists()


def test_names_in_the_readme_of_the_kernels_exist() -> None:
    """Each identifier in backticks stands somewhere in the sources; formulas and commands are none."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted(KERNELS.rglob("*.py")))
    names = [name for name in IN_BACKTICKS if re.fullmatch(r"@?[A-Za-z]\w*", name)]
    assert len(names) > 10
    assert [name for name in names if not re.search(rf"\b{name.removeprefix('@')}\b", sources)] == []


def test_the_readme_of_the_kernels_names_every_file() -> None:
    files = {path.relative_to(KERNELS).as_posix() for path in KERNELS.rglob("*.py") if path.name != "__init__.py"}
    assert files == {name for name in IN_BACKTICKS if (KERNELS / name).is_file()}
