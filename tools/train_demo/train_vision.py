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
from optimiser import Optimiser
from options import Options, training_options
from patch_targets import patch_targets, pixel_tensor
from processes import rank, world
from run import Run
from scene_store import Scenes, draw, steps_in_shard, training_shard
from seeds import VALIDATION
from stage import begin, train
from torch import nn

from pg2ref.checkpoint.vae_npz import VAE_NAME

SIGMAS = (12.0, 4.0)  # of the soft targets of the edges, in bins, from the first step to the last
DEFAULTS = Options(steps=6000, batch_size=16, highest_rate=1.5e-3, muon_rate=1.5e-3, final_share=0.35, scenes=65536)


def new_tower() -> nn.Module:
    """SigLIP as PaliGemma holds it."""
    return build(model_config(0, 8)).model.vision_tower


def see(tower: nn.Module, scenes: Scenes) -> torch.Tensor:
    """Features of every patch, float32 [N, P, E]."""
    with torch.autocast("cpu", torch.bfloat16):
        return tower(pixel_tensor(scenes)).last_hidden_state.float()


@training_options(DEFAULTS)
def main(folder: Path, options: Options) -> None:
    """Train the tower in FOLDER, or go on training it."""
    begin(options)
    tower = new_tower()
    heads = Heads(tower.config.hidden_size)
    optimiser = Optimiser([(tower, 1.0), (heads, 1.0)], options.highest_rate, options.muon_rate)
    run = Run(folder / "vision", {"tower": tower, "heads": heads, "optimiser": optimiser})
    vae = read_exported(folder / "mask_vae" / VAE_NAME)
    held_out = draw(VALIDATION[: options.validation], vae)

    def lessons_of(number: int) -> list[Scenes]:
        scenes = training_shard(folder, number * world() + rank(), options.scenes, vae)
        starts = (at * options.batch_size for at in range(steps_in_shard(options.batch_size)))
        return [scenes.take(slice(start, start + options.batch_size)) for start in starts]

    def learn(shown: Scenes) -> dict[str, float]:
        sigma = SIGMAS[0] * (SIGMAS[1] / SIGMAS[0]) ** (run.step / options.steps)
        losses = heads.losses(see(tower, shown), patch_targets(shown), sigma)
        weighted(losses).backward()
        return {kind: loss.item() for kind, loss in losses.items()}

    @torch.no_grad()
    def judge() -> dict[str, float]:
        return measure(heads, see(tower, held_out), patch_targets(held_out))

    counted = {"images": options.batch_size}
    train(run, optimiser, options, lessons_of=lessons_of, learn=learn, judge=judge, counted=counted)


if __name__ == "__main__":
    main()
