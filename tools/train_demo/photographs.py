"""Photographs to measure with whether the built-in model knows what it was not made for: files of installed packages.

    pip install --no-deps scikit-image scikit-learn foolbox

Only their files are read. Each is taken whole, and large ones also in two overlapping parts. Nothing of it is kept.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import click

from pg2ref.inputs.image import Picture, read_image

FILES = {  # package -> folder and patterns, of what a camera took: no drawings, no printed pages
    "skimage": (
        "data",
        "astronaut.png brick.png camera.png chelsea.png clock_motion.png coffee.png coins.png grass.png gravel.png "
        "hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png retina.jpg rocket.jpg",
    ),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
    "foolbox": ("data", "imagenet_*.jpg cifar10_*.png cifar100_*.png"),
}
LARGE_PX = 100  # the smaller side, to be cut
PART = 2, 3  # of the smaller side


class Photograph(NamedTuple):
    """A picture, and where it comes from: `skimage whole`, say."""

    kind: str
    picture: Picture


def photographs() -> Iterator[Photograph]:
    """All there are.

    Raises:
        ClickException: a package is not installed.
    """
    for package, (folder, patterns) in FILES.items():
        found = find_spec(package)
        if found is None or found.origin is None:
            raise click.ClickException(f"no photographs of {package}: {(__doc__ or '').splitlines()[2].strip()}")
        for pattern in patterns.split():
            for path in sorted((Path(found.origin).parent / folder).glob(pattern)):
                yield from _whole_and_parts(package, read_image(path))


def _whole_and_parts(package: str, picture: Picture) -> Iterator[Photograph]:
    yield Photograph(f"{package}, whole", picture)
    width, height = picture.size
    if min(width, height) >= LARGE_PX:
        side = min(width, height) * PART[0] // PART[1]
        for left, top in ((0, 0), (width - side, height - side)):
            yield Photograph(f"{package}, parts", picture.crop((left, top, left + side, top + side)))
