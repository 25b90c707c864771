"""Writes a mask decoder with seeded random weights, in the layout and the widths of big_vision's vae-oid.npz.

    python tools/random_mask_decoder.py /data/vae-oid.npz
    python tools/random_mask_decoder.py small.npz --code-width 10 --width 24 --upsample 16,12,8,6

Its masks are noise; it is there to try `pg2ref segment` with, and to test the reader.
"""

from pathlib import Path

import click
import numpy as np

from pg2ref.arrays import Array
from pg2ref.checkpoint.vae_npz import BLOCKS, CODEBOOK, LAST, NUM_CODE_VALUES, UPSAMPLE

PUBLISHED_CODE_WIDTH, PUBLISHED_WIDTH, PUBLISHED_UPSAMPLE = 512, 128, (128, 64, 32, 16)


def random_arrays(
    seed: int = 0,
    code_width: int = PUBLISHED_CODE_WIDTH,
    width: int = PUBLISHED_WIDTH,
    upsample: tuple[int, ...] = PUBLISHED_UPSAMPLE,
) -> dict[str, Array]:
    """All arrays by name; `upsample` are the widths that the transposed convolutions give."""
    rng = np.random.default_rng(seed)
    arrays = {CODEBOOK: rng.normal(size=(NUM_CODE_VALUES, code_width)).astype(np.float32)}

    def add(name: str, shape: tuple[int, int, int, int], fan_in: int, outputs: int) -> None:
        arrays[f"{name}.weight"] = (rng.normal(size=shape) * (2 / fan_in) ** 0.5).astype(np.float32)
        arrays[f"{name}.bias"] = (rng.normal(size=outputs) * 0.1).astype(np.float32)

    add("decoder.0", (width, code_width, 1, 1), code_width, width)
    for block in BLOCKS:
        for layer, size in ((0, 3), (2, 3), (4, 1)):
            add(f"decoder.{block}.net.{layer}", (width, width, size, size), width * size * size, width)
    for layer, inputs, outputs in zip(UPSAMPLE, (width, *upsample), upsample, strict=False):
        add(f"decoder.{layer}", (inputs, outputs, 4, 4), inputs * 4, outputs)  # 4 of the 16 taps meet in a pixel
    add(f"decoder.{LAST}", (1, upsample[-1], 1, 1), upsample[-1], 1)
    return arrays


@click.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seed", default=0, show_default=True)
@click.option("--code-width", default=PUBLISHED_CODE_WIDTH, show_default=True)
@click.option("--width", default=PUBLISHED_WIDTH, show_default=True)
@click.option("--upsample", default=",".join(map(str, PUBLISHED_UPSAMPLE)), show_default=True)
def main(target: Path, seed: int, code_width: int, width: int, upsample: str) -> None:
    """Write TARGET, an .npz file."""
    widths = tuple(int(part) for part in upsample.split(","))
    np.savez(target, **random_arrays(seed, code_width, width, widths))


if __name__ == "__main__":
    main()
