"""Stage 2: the language model alone, on the truth of each patch in place of a tower's features.

    python tools/train_demo/train_language.py build/demo          # again: goes on where it stopped

May run beside stage 1. The folder gets `language/state.pt` and `language/log.jsonl`, and `model/` with the
configuration and the tokenizer.
"""

from pathlib import Path

import click
import torch
from answer_scores import scores
from architecture import build, model_config
from language import LocationTable, answer_loss, read
from mask_vae import read_exported
from optimiser import Optimiser, rate_share
from oracle import Oracle
from patch_targets import patch_targets
from questions import batches
from run import Run
from scene_store import SHARD, draw, shard
from seeds import FIRST_FOR_TRAINING, VALIDATION
from vocabulary import FIRST_LOCATION, VOCAB_SIZE, write_tokenizer

from pg2ref.checkpoint.vae_npz import VAE_NAME

WARM_UP_STEPS = 100
SIGMAS = (10.0, 3.0)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=10000, show_default=True)
@click.option("--batch-scenes", default=8, show_default=True, help="Of three questions each.")
@click.option("--highest-rate", default=2e-3, show_default=True, help="AdamW's.")
@click.option("--muon-rate", default=2e-3, show_default=True, help="Muon's; 0 for AdamW alone.")
@click.option("--final-share", default=0.25, show_default=True, help="Of the steps, over which the rate falls to 0.")
@click.option("--scenes", default=65536, show_default=True, help="How many before they are read again.")
@click.option("--validation", default=200, show_default=True, help="Scenes to measure on.")
@click.option("--log-every", default=250, show_default=True, help="In steps.")
@click.option("--stop-after", type=int, help="Stop at this step, to go on later.")
@click.option("--seed", default=0, show_default=True)
def main(
    folder: Path,
    steps: int,
    batch_scenes: int,
    highest_rate: float,
    muon_rate: float,
    final_share: float,
    scenes: int,
    validation: int,
    log_every: int,
    stop_after: int | None,
    seed: int,
) -> None:
    """Train, or go on training."""
    torch.manual_seed(seed)
    model = build(model_config(FIRST_LOCATION, VOCAB_SIZE))
    language = model.model.language_model
    locations, oracle = LocationTable(language.config.hidden_size), Oracle(language.config.hidden_size)
    trained = {"language": language, "locations": locations, "oracle": oracle}
    optimiser = Optimiser([(part, 1.0) for part in trained.values()], highest_rate, muon_rate)
    run = Run(folder / "language", trained | {"optimiser": optimiser}, seed)
    tokenizer = write_tokenizer(folder / "model")
    vae = read_exported(folder / "mask_vae" / VAE_NAME)
    held_out = draw(VALIDATION[:validation], vae)
    held_out_batches = batches(held_out, tokenizer, batch_scenes, VALIDATION.start, 0)

    def judge() -> dict[str, float]:
        with torch.no_grad():
            embeddings = oracle(patch_targets(held_out))
            readings = [
                (read(model, locations, embeddings[batch.rows_S][batch.scene_Q], batch), batch)
                for batch in held_out_batches
            ]
        return scores(readings)

    per_shard = SHARD // batch_scenes
    while run.step < min(steps, stop_after or steps):
        number, at = divmod(run.step, per_shard)
        if at == 0 or "current" not in locals():
            current = shard(folder / "scenes", FIRST_FOR_TRAINING + number * SHARD % scenes, vae)
            asked = batches(current, tokenizer, batch_scenes, FIRST_FOR_TRAINING + number, number)
        batch = asked[at]
        embeddings = oracle(patch_targets(current.take(batch.rows_S)))[batch.scene_Q]
        sigma = SIGMAS[0] * (SIGMAS[1] / SIGMAS[0]) ** (run.step / steps)
        loss = answer_loss(read(model, locations, embeddings, batch), sigma)
        loss.backward()
        optimiser.step(rate_share(run.step, steps, WARM_UP_STEPS, final_share))
        run.stepped({"answers": loss.item()})
        if run.step % log_every == 0 or run.step == steps:
            run.log(judge, questions=run.step * batch_scenes * 3)
    run.save()


if __name__ == "__main__":
    main()
