"""The checkpoint that lies in the package: pg2ref-shapes, a small model of this architecture for synthetic scenes.

tools/train_demo/ makes the folder; its README.md is the model's card. In it, beside what every checkpoint has, lies
what familiarity.py compares images with.
"""

from importlib.resources import files
from pathlib import Path

NAME = "pg2ref-shapes"
FOLDER = Path(str(files("pg2ref.demo") / "checkpoint"))


def is_builtin(folder: Path) -> bool:
    """Whether a folder is the package's own, by whatever path."""
    return folder.resolve() == FOLDER.resolve()
