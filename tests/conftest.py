"""Options and fixtures that several test files share."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Run, make_run, write_picture

HAS_PARITY = all(find_spec(package) for package in ("torch", "transformers", "peft"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-parity", action="store_true", help="fail where a live Transformers test would be skipped"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip live parity tests without the `parity` extra, unless they are required."""
    parity = [item for item in items if item.get_closest_marker("parity")]
    for item in parity:
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # Transformers' and torch's own
    if HAS_PARITY:
        return
    if config.getoption("--require-parity"):
        raise pytest.UsageError("--require-parity: install the `parity` extra, torch==2.13.0, transformers and peft")
    for item in parity:
        item.add_marker(pytest.mark.skip(reason="needs the `parity` extra"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Where parity is required, a skipped parity test is a failure, whatever skipped it."""
    skipped = [r.nodeid for r in terminalreporter.stats.get("skipped", []) if "parity" in getattr(r, "keywords", ())]
    if config.getoption("--require-parity") and skipped:
        terminalreporter.write_line(f"--require-parity: {len(skipped)} parity tests were skipped: {skipped}")
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20241205)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line in this process."""
    return make_run(capsys, monkeypatch)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_picture(tmp_path / "picture.png")


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in the released layout, with every Gemma 2 feature live. Do not change it: copy it."""
    import random_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    random_checkpoint.write_checkpoint(folder, random_checkpoint.released_config("small"))
    return folder
