"""Trains the built-in model's mask VAE on masks of scenes; minutes on two cores.

    python tools/train_demo/train_mask_vae.py build/mask_vae            # again: goes on where it stopped
    python tools/train_demo/train_mask_vae.py build/mask_vae --steps 4000

The folder gets `state.pt` (to go on from), `log.jsonl` (a line every 100 steps) and `vae-oid.npz`, which pg2ref reads.
The same steps, seed and threads give the same weights, interrupted or not.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from mask_crops import batches, crop, scene_masks
from mask_vae import MaskVae, export
from PIL import Image
from seeds import FIRST_FOR_TRAINING, VALIDATION

from pg2ref.checkpoint.vae_npz import VAE_NAME, read_mask_decoder
from pg2ref.model.vqvae import decode_codes

WARM_UP_STEPS = 50
FINAL_SHARE = 0.4  # of the steps, over which the rate falls to 0


def rate(step: int, steps: int, highest: float) -> float:
    """Learning rate: up over the warm-up, then constant, then down to 0 in a line."""
    return highest * min(1.0, (step + 1) / WARM_UP_STEPS, (steps - step) / (FINAL_SHARE * steps))


def mean_iou(vae: MaskVae, folder: Path, size_px: int, scenes: range) -> float:
    """What is left of masks after encoding, exporting, decoding with pg2ref and stretching back to their boxes."""
    decoder = read_mask_decoder(folder / VAE_NAME)
    overlaps = []
    for seed in scenes:
        for mask_YX in scene_masks(seed, size_px):
            decoded = decode_codes(decoder, vae.encode(crop(mask_YX)[None])[0]).astype(np.float32)
            stretched = Image.fromarray(decoded).resize(mask_YX.shape[::-1], Image.Resampling.BILINEAR)
            seen_YX = np.asarray(stretched) > 0
            overlaps.append((seen_YX & mask_YX).sum() / (seen_YX | mask_YX).sum())
    return float(np.mean(overlaps))


def save(folder: Path, state: dict[str, Any]) -> None:
    """Whole or not at all."""
    torch.save(state, folder / "state.part")
    os.replace(folder / "state.part", folder / "state.pt")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=2000, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--highest-rate", default=2e-3, show_default=True)
@click.option("--size", "size_px", default=112, show_default=True, help="Of the scenes, in px.")
@click.option("--seed", default=0, show_default=True)
@click.option("--stop-after", type=int, help="Stop at this step, to go on later.")
def main(
    folder: Path, steps: int, batch_size: int, highest_rate: float, size_px: int, seed: int, stop_after: int | None
) -> None:
    """Train, or go on training, in FOLDER."""
    torch.manual_seed(seed)
    vae = MaskVae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=highest_rate, weight_decay=1e-4)
    step, position, seconds = 0, (FIRST_FOR_TRAINING, 0), 0.0
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        step, position, seconds = state["step"], state["position"], state["seconds"]
    stream = batches(position, size_px, batch_size)
    started = time.perf_counter()
    losses = []
    while step < min(steps, stop_after or steps):
        position, crops = next(stream)
        masks = torch.from_numpy(crops)[:, None]
        optimizer.param_groups[0]["lr"] = rate(step, steps, highest_rate)
        decoded, commitment = vae(masks)
        loss = (decoded - masks).square().mean() + commitment
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        step += 1
        if step % 100 == 0 or step in (steps, stop_after):
            vae.eval()
            export(vae, folder / VAE_NAME)
            line = {
                "step": step,
                "loss": round(float(np.mean(losses)), 5),
                "codes_in_use": int((vae.use > 0.5).sum()),
                "iou": round(mean_iou(vae, folder, size_px, VALIDATION[:150]), 4),
                "seconds": round(seconds + time.perf_counter() - started, 1),
            }
            vae.train()
            losses = []
            with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            click.echo(json.dumps(line))
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
            save(folder, state | {"step": step, "position": position, "seconds": line["seconds"]})


if __name__ == "__main__":
    main()
