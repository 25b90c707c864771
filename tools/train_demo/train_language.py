"""Stage 2: the language model alone, on the truth of each patch in place of a tower's features.

    python tools/train_demo/train_language.py build/demo          # again: goes on where it stopped

May run beside stage 1. The folder gets `language/state.pt` and `language/log.jsonl`, and `model/` with the
configuration and the tokenizer.
"""

from pathlib import Path

import torch
from answer_scores import scores
from architecture import build, model_config
from language import LocationTable, Reading, answer_loss, read
from mask_vae import read_exported
from optimiser import Optimiser, rate_share
from options import Options, training_options
from oracle import Oracle
from patch_targets import patch_targets
from processes import join, rank, world
from questions import PER_SCENE, Batch, batches
from run import Run
from scene_store import SHARD, Scenes, draw, shard
from seeds import FIRST_FOR_TRAINING, VALIDATION
from vocabulary import FIRST_LOCATION, VOCAB_SIZE, write_tokenizer

from pg2ref.checkpoint.vae_npz import VAE_NAME

WARM_UP_STEPS = 100
SIGMAS = (10.0, 3.0)  # of the soft targets of locations, in bins, from the first step to the last
DEFAULTS = Options(steps=10000, batch_size=8, highest_rate=2e-3, muon_rate=2e-3, final_share=0.25, scenes=65536)


@training_options(DEFAULTS)
def main(folder: Path, options: Options) -> None:
    """Train the language model in FOLDER, or go on training it."""
    join()
    torch.manual_seed(options.seed)
    model = build(model_config(FIRST_LOCATION, VOCAB_SIZE))
    language = model.model.language_model
    locations, oracle = LocationTable(language.config.hidden_size), Oracle(language.config.hidden_size)
    trained = {"language": language, "locations": locations, "oracle": oracle}
    optimiser = Optimiser([(part, 1.0) for part in trained.values()], options.highest_rate, options.muon_rate)
    run = Run(folder / "language", trained | {"optimiser": optimiser})
    tokenizer = write_tokenizer(folder / "model")
    vae = read_exported(folder / "mask_vae" / VAE_NAME)
    held_out = draw(VALIDATION[: options.validation], vae)
    held_out_batches = batches(held_out, tokenizer, options.batch_size, VALIDATION.start, 0)

    def answers(scenes: Scenes, batch: Batch) -> Reading:
        told = oracle(patch_targets(scenes.take(batch.rows_S)))
        return read(model, locations, told[batch.scene_Q], batch)

    current = None
    while run.step < options.last_step:
        number, at = divmod(run.step, SHARD // options.batch_size)
        if current is None or at == 0:
            reading = number * world() + rank()
            current = shard(folder / "scenes", FIRST_FOR_TRAINING + reading * SHARD % options.scenes, vae)
            asked = batches(current, tokenizer, options.batch_size, FIRST_FOR_TRAINING + reading, number)
        sigma = SIGMAS[0] * (SIGMAS[1] / SIGMAS[0]) ** (run.step / options.steps)
        loss = answer_loss(answers(current, asked[at]), sigma)
        loss.backward()
        optimiser.step(rate_share(run.step, options.steps, WARM_UP_STEPS, options.final_share))
        run.stepped({"answers": loss.item()})
        if run.step % options.log_every == 0 or run.step == options.steps:
            with torch.no_grad():
                measured = scores((answers(held_out, batch), batch) for batch in held_out_batches)
            run.log(measured, questions=run.step * options.batch_size * PER_SCENE * world())
    run.save()


if __name__ == "__main__":
    main()
