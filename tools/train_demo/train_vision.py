"""Stage 1: the vision tower alone, by dense losses on every patch.

    python tools/train_demo/train_vision.py build/demo            # again: goes on where it stopped

Needs the mask VAE (train_mask_vae.py build/demo/mask_vae): the scenes are stored with their mask codes.
The folder gets `vision/state.pt`, `vision/log.jsonl`, and `scenes/`, about 20 MB for 512 scenes, which later stages
read again.
"""

from pathlib import Path

import torch
from architecture import build, model_config
from heads import Heads, measure, weighted
from mask_vae import read_exported
from optimiser import Optimiser, rate_share
from options import Options, training_options
from patch_targets import patch_targets, pixel_tensor
from processes import join, rank, world
from run import Run
from scene_store import SHARD, Scenes, draw, shard
from seeds import FIRST_FOR_TRAINING, VALIDATION
from torch import nn

from pg2ref.checkpoint.vae_npz import VAE_NAME

WARM_UP_STEPS = 100
SIGMAS = (12.0, 4.0)  # of the soft targets of the edges, in bins, from the first step to the last
DEFAULTS = Options(steps=6000, batch_size=16, highest_rate=1.5e-3, muon_rate=1.5e-3, final_share=0.35, scenes=65536)


def new_tower() -> nn.Module:
    """SigLIP as PaliGemma holds it."""
    return build(model_config(0, 8)).model.vision_tower


def see(tower: nn.Module, scenes: Scenes) -> torch.Tensor:
    """Features of every patch, float32 [N, P, E]."""
    with torch.autocast("cpu", torch.bfloat16):
        return tower(pixel_tensor(scenes)).last_hidden_state.float()


@torch.no_grad()
def judge(tower: nn.Module, heads: Heads, held_out: Scenes) -> dict[str, float]:
    """How much the heads can read, on scenes not trained on."""
    return measure(heads, see(tower, held_out), patch_targets(held_out))


@training_options(DEFAULTS)
def main(folder: Path, options: Options) -> None:
    """Train the tower in FOLDER, or go on training it."""
    join()
    torch.manual_seed(options.seed)
    tower = new_tower()
    heads = Heads(tower.config.hidden_size)
    optimiser = Optimiser([(tower, 1.0), (heads, 1.0)], options.highest_rate, options.muon_rate)
    run = Run(folder / "vision", {"tower": tower, "heads": heads, "optimiser": optimiser})
    vae = read_exported(folder / "mask_vae" / VAE_NAME)
    held_out = draw(VALIDATION[: options.validation], vae)
    current = None
    while run.step < options.last_step:
        number, at = divmod(run.step, SHARD // options.batch_size)
        if current is None or at == 0:
            reading = number * world() + rank()
            current = shard(folder / "scenes", FIRST_FOR_TRAINING + reading * SHARD % options.scenes, vae)
        shown = current.take(slice(at * options.batch_size, (at + 1) * options.batch_size))
        sigma = SIGMAS[0] * (SIGMAS[1] / SIGMAS[0]) ** (run.step / options.steps)
        losses = heads.losses(see(tower, shown), patch_targets(shown), sigma)
        weighted(losses).backward()
        optimiser.step(rate_share(run.step, options.steps, WARM_UP_STEPS, options.final_share))
        run.stepped({kind: loss.item() for kind, loss in losses.items()})
        if run.step % options.log_every == 0 or run.step == options.steps:
            images = run.step * options.batch_size * world()
            run.log(judge(tower, heads, held_out), images=images)
    run.save()


if __name__ == "__main__":
    main()
