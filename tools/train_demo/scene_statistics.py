"""Statistics of the training scenes' image embeddings, by which pg2ref tells a photograph from a scene.

    python tools/train_demo/scene_statistics.py out/pg2ref-shapes        # writes familiarity.npz into it

The limit is chosen on training scenes that the statistics were not made of.
"""

from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
from scene_examples import example
from seeds import FIRST_FOR_TRAINING

import pg2ref
from pg2ref.api import Model
from pg2ref.arrays import Array
from pg2ref.demo.familiarity import Familiarity, write_familiarity
from pg2ref.model.paligemma import encode_images

FOR_STATISTICS, FOR_LIMIT = 3000, 2000  # scenes
FAMILIAR = 0.97  # of the training scenes
RIDGE = 1e-3  # of the mean variance: embeddings have fewer degrees of freedom than numbers


def pooled(model: Model, pixel_values: Iterable[Array]) -> Array:
    """The mean image embedding of each image, [N, D]."""
    return np.stack([encode_images(model.numbers, [one_CYX]).mean(0) for one_CYX in pixel_values])


def statistics(for_statistics_ND: Array, for_limit_ND: Array) -> Familiarity:
    """Mean and covariance of some scenes, the limit from others."""
    mean_D = for_statistics_ND.mean(0, dtype=np.float64)
    covariance_DD = np.cov(for_statistics_ND.T.astype(np.float64))
    covariance_DD += RIDGE * np.trace(covariance_DD) / len(mean_D) * np.eye(len(mean_D))
    whitening_DD = np.linalg.inv(np.linalg.cholesky(covariance_DD))
    found = Familiarity(mean_D.astype(np.float32), whitening_DD.astype(np.float32), np.float32(1))
    distances = [found.distance(one_D[None]) for one_D in for_limit_ND]
    return found._replace(limit=np.float32(np.quantile(distances, FAMILIAR)))


def scene_statistics(folder: Path) -> Familiarity:
    """Those of the model in a folder."""
    model = pg2ref.load(folder, backend="numpy")
    seeds = range(FIRST_FOR_TRAINING, FIRST_FOR_TRAINING + FOR_STATISTICS + FOR_LIMIT)
    pixels = (example(seed, model.config.vision.image_size).pixel_values_CYX for seed in seeds)
    scenes_ND = pooled(model, pixels)
    return statistics(scenes_ND[:FOR_STATISTICS], scenes_ND[FOR_STATISTICS:])


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Compute and write."""
    found = scene_statistics(folder)
    write_familiarity(found, folder)
    click.echo(f"{folder}: the limit is a distance of {found.limit:.2f}")


if __name__ == "__main__":
    main()
