"""Makes what README.md shows of the first run: the picture tools/pictures/first-run.png, and what is printed.

    python tools/make_readme_picture.py

Runs `pg2ref generate` in an empty folder. The picture shows the scene and, beside it, what the built-in model found in
it. Scene and command are always the same; the answer is the model's, on this processor.
"""

import re
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from PIL import Image
from tool_help import help_of

from pg2ref.cli.drawn_scene import FOUND_NAME, SCENE_NAME

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "tools" / "pictures" / "first-run.png"
MARKS = "<!-- first run:begin -->", "<!-- first run:end -->"
GAP_PX = 8


def first_run(folder: Path) -> tuple[str, str]:
    """Run the command in a folder; what it prints on stdout and on stderr."""
    import subprocess

    command = [sys.executable, "-m", "pg2ref", "generate"]
    ran = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return ran.stdout, ran.stderr.replace(f"{folder.resolve()}/", "")


def side_by_side(folder: Path) -> Image.Image:
    """The scene, and what was found in it: nothing, where the model found nothing."""
    scene = Image.open(folder / SCENE_NAME).convert("RGB")
    found = folder / FOUND_NAME
    shown = Image.open(found).convert("RGB") if found.exists() else scene
    both = Image.new("RGB", (2 * scene.width + GAP_PX, scene.height), "white")
    both.paste(scene, (0, 0))
    both.paste(shown, (scene.width + GAP_PX, 0))
    return both


def with_output(readme: str, printed: str) -> str:
    """README.md with what was printed between its marks."""
    begin, end = MARKS
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    block = f"{begin}\n```\n{printed.expandtabs(8).rstrip()}\n```\n{end}"
    return pattern.sub(lambda _: block, readme)


def make(picture: Path, readme: Path) -> None:
    """Write both."""
    with tempfile.TemporaryDirectory() as folder:
        printed, _ = first_run(Path(folder))
        pixels = np.asarray(side_by_side(Path(folder)))
    picture.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(picture, optimize=True)
    readme.write_text(with_output(readme.read_text(encoding="utf-8"), printed), encoding="utf-8")


@click.command(help=help_of(__doc__))
def main() -> None:
    """Make them for the README."""
    make(PICTURE, ROOT / "README.md")
    click.echo(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
