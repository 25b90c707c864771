"""Stage 1: the vision tower alone, by dense losses on every patch.

    python tools/train_demo/train_vision.py build/demo            # again: goes on where it stopped

Needs the mask VAE (train_mask_vae.py build/demo/mask_vae): the scenes are stored with their mask codes.
The folder gets `vision/state.pt`, `vision/log.jsonl`, and `scenes/`, about 20 MB for 512 scenes, which later stages
read again.
"""

from pathlib import Path

import click
import torch
from architecture import build, model_config
from heads import Heads, measure, weighted
from mask_vae import read_exported
from optimiser import Optimiser, rate_share
from patch_targets import patch_targets, pixel_tensor
from run import Run
from scene_store import SHARD, draw, shard
from seeds import FIRST_FOR_TRAINING, VALIDATION
from torch import nn

from pg2ref.checkpoint.vae_npz import VAE_NAME

WARM_UP_STEPS = 100
SIGMAS = (12.0, 4.0)  # of the soft targets of the edges, in bins, from the first step to the last


def new_tower() -> nn.Module:
    """SigLIP as PaliGemma holds it."""
    return build(model_config(0, 8)).model.vision_tower


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=6000, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--highest-rate", default=1.5e-3, show_default=True, help="AdamW's.")
@click.option("--muon-rate", default=1.5e-3, show_default=True, help="Muon's; 0 for AdamW alone.")
@click.option("--final-share", default=0.35, show_default=True, help="Of the steps, over which the rate falls to 0.")
@click.option("--scenes", default=65536, show_default=True, help="How many before they are read again.")
@click.option("--validation", default=400, show_default=True, help="Scenes to measure on.")
@click.option("--log-every", default=250, show_default=True, help="In steps.")
@click.option("--stop-after", type=int, help="Stop at this step, to go on later.")
@click.option("--name", default="vision", show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    folder: Path,
    steps: int,
    batch_size: int,
    highest_rate: float,
    muon_rate: float,
    final_share: float,
    scenes: int,
    validation: int,
    log_every: int,
    stop_after: int | None,
    name: str,
    seed: int,
) -> None:
    """Train, or go on training."""
    torch.manual_seed(seed)
    tower = new_tower()
    heads = Heads(tower.config.hidden_size)
    optimiser = Optimiser([(tower, 1.0), (heads, 1.0)], highest_rate, muon_rate)
    run = Run(folder / name, {"tower": tower, "heads": heads, "optimiser": optimiser}, seed)
    vae = read_exported(folder / "mask_vae" / VAE_NAME)
    held_out = draw(VALIDATION[:validation], vae)

    def judge() -> dict[str, float]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = tower(pixel_tensor(held_out)).last_hidden_state
        return measure(heads, features.float(), patch_targets(held_out))

    per_shard = SHARD // batch_size
    while run.step < min(steps, stop_after or steps):
        number, batch = divmod(run.step, per_shard)
        if batch == 0 or "current" not in locals():
            current = shard(folder / "scenes", FIRST_FOR_TRAINING + number * SHARD % scenes, vae)
        batch_scenes = current.take(slice(batch * batch_size, (batch + 1) * batch_size))
        progress = run.step / steps
        with torch.autocast("cpu", torch.bfloat16):
            features = tower(pixel_tensor(batch_scenes)).last_hidden_state
        sigma = SIGMAS[0] * (SIGMAS[1] / SIGMAS[0]) ** progress
        losses = heads.losses(features, patch_targets(batch_scenes), sigma)
        weighted(losses).backward()
        optimiser.step(rate_share(run.step, steps, WARM_UP_STEPS, final_share))
        run.stepped({kind: loss.item() for kind, loss in losses.items()})
        if run.step % log_every == 0 or run.step == steps:
            run.log(judge, images=run.step * batch_size)
    run.save()


if __name__ == "__main__":
    main()
