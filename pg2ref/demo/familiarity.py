"""Whether an image looks like those that the built-in model was trained on: a model of shapes answers photographs too.

What the language model gets to see of an image is pooled, the mean of its image embeddings, and compared with the
training scenes: a Mahalanobis distance (Lee et al. 2018, arXiv:1807.03888, there with classes), and a limit that few
scenes pass. tools/train_demo/scene_statistics.py makes the numbers and measures how often the limit is right.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array

FILE_NAME = "familiarity.npz"


class Familiarity(NamedTuple):
    """Statistics of the pooled embeddings of training scenes, float32."""

    mean_D: Array
    whitening_DD: Array  # turns a difference from the mean into one of unit covariance
    limit: Array  # the largest distance that is familiar, a number

    def distance(self, embeddings_ID: Array) -> float:
        """How far one image is from the training scenes, as a multiple of the limit."""
        away_D = self.whitening_DD @ (embeddings_ID.mean(0) - self.mean_D)
        return float(np.linalg.norm(away_D) / self.limit)

    def warnings(self, embeddings_ID: Array, num_images: int) -> tuple[str, ...]:
        """What to say of the images whose embeddings these are, one after the other."""
        distances = [self.distance(one_ID) for one_ID in np.split(embeddings_ID, num_images)]
        return tuple(
            f"{'the image' if num_images == 1 else f'image {number}'} looks unlike the synthetic scenes that the "
            f"built-in model was made for ({distance:.1f} times the limit): do not trust the answer"
            for number, distance in enumerate(distances, 1)
            if distance > 1
        )


def read_familiarity(folder: Path) -> Familiarity:
    """The statistics in the package's own folder."""
    with np.load(folder / FILE_NAME) as stored:
        return Familiarity(*(stored[name] for name in Familiarity._fields))


def write_familiarity(familiarity: Familiarity, folder: Path) -> None:
    """The other way round."""
    np.savez(folder / FILE_NAME, **familiarity._asdict())
