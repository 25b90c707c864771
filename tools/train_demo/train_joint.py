"""Stage 3: tower and language model together, on pixels; stages 1 and 2 must have run.

    python -m torch.distributed.run --nproc-per-node 2 tools/train_demo/train_joint.py build/demo

The projector starts as the linear map that comes nearest to stage 2's oracle. The auxiliary heads stay, so that the
tower does not forget, and the tower learns slowly. Again: goes on where it stopped; with more --steps the rate rises
again. The folder gets `joint/state.pt` and `joint/log.jsonl`.
"""

from pathlib import Path

import torch
from answer_scores import scores
from architecture import build, model_config
from heads import Heads, measure, weighted
from language import LocationTable, answer_loss, read
from mask_vae import MaskVae, read_exported
from optimiser import Optimiser, rate_share
from options import Options, training_options
from oracle import Oracle
from patch_targets import patch_targets, pixel_tensor
from processes import join, rank, world
from questions import PER_SCENE, Batch, batches
from run import Run
from scene_store import SHARD, Scenes, draw, shard
from seeds import FIRST_FOR_TRAINING, VALIDATION
from torch import Tensor, nn
from transformers import PaliGemmaForConditionalGeneration
from vocabulary import FIRST_LOCATION, VOCAB_SIZE, write_tokenizer

from pg2ref.checkpoint.vae_npz import VAE_NAME

WARM_UP_STEPS = 100
SIGMAS = (4.0, 3.0)  # of locations, in the tower's edges and in answers
TOWER_SHARE = 0.2  # of the rate
AUXILIARY_WEIGHT = 0.3
FIT_SCENES, RIDGE = 1024, 1.0
DEFAULTS = Options(steps=40000, batch_size=6, highest_rate=1.2e-3, muon_rate=1.2e-3, final_share=0.3, scenes=131072)


class Joint(nn.Module):
    """Everything that is trained: the model, its location rows, the heads on its tower."""

    def __init__(self) -> None:
        super().__init__()
        self.model: PaliGemmaForConditionalGeneration = build(model_config(FIRST_LOCATION, VOCAB_SIZE))
        self.locations = LocationTable(self.model.config.text_config.hidden_size)
        self.heads = Heads(self.model.config.vision_config.hidden_size)

    def see(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """The tower's features and the image embeddings of scenes, float32."""
        with torch.autocast("cpu", torch.bfloat16):
            features = self.model.model.vision_tower(pixel_tensor(scenes)).last_hidden_state
            embeddings = self.model.model.multi_modal_projector(features)
        return features.float(), embeddings.float()

    def groups(self) -> list[tuple[nn.Module, float]]:
        """Modules with their shares of the rate."""
        inner = self.model.model
        fast = [inner.multi_modal_projector, inner.language_model, self.locations]
        return [(inner.vision_tower, TOWER_SHARE), (self.heads, TOWER_SHARE), *((module, 1.0) for module in fast)]


def begin(joint: Joint, folder: Path, vae: MaskVae) -> None:
    """Take over what stages 1 and 2 have learned, and fit the projector between them."""
    vision, language = (
        torch.load(folder / stage / "state.pt", weights_only=True)["parts"] for stage in ("vision", "language")
    )
    inner = joint.model.model
    inner.vision_tower.load_state_dict(vision["tower"])
    joint.heads.load_state_dict(vision["heads"])
    inner.language_model.load_state_dict(language["language"])
    joint.locations.load_state_dict(language["locations"])
    oracle = Oracle(inner.language_model.config.hidden_size)
    oracle.load_state_dict(language["oracle"])
    scenes = [shard(folder / "scenes", FIRST_FOR_TRAINING + at, vae) for at in range(0, FIT_SCENES, SHARD)]
    fit_projector(joint, oracle, scenes)


@torch.no_grad()
def fit_projector(joint: Joint, oracle: Oracle, scenes: list[Scenes]) -> float:
    """Ridge regression from features to the oracle's embeddings; returns the share of variance that it explains."""
    features = torch.cat([joint.see(some)[0].flatten(0, 1) for some in scenes])
    wanted = torch.cat([oracle(patch_targets(some)).flatten(0, 1) for some in scenes])
    padded = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    gram = padded.T @ padded + RIDGE * torch.eye(padded.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(gram, padded.T @ wanted.double()).float()
    projector = joint.model.model.multi_modal_projector.linear
    projector.weight.copy_(solved[:-1].T)
    projector.bias.copy_(solved[-1])
    missed = (projector(features) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    return 1 - missed.item()


def judge(joint: Joint, held_out: Scenes, asked: list[Batch]) -> dict[str, float]:
    """Scores of answers and heads on held-out scenes."""
    with torch.no_grad():
        features, embeddings = joint.see(held_out)
        readings = [
            (read(joint.model, joint.locations, embeddings[batch.rows_S][batch.scene_Q], batch), batch)
            for batch in asked
        ]
    seen = measure(joint.heads, features, patch_targets(held_out))
    return scores(readings) | {f"tower_{name}": value for name, value in seen.items()}


@training_options(DEFAULTS)
def main(folder: Path, options: Options) -> None:
    """Train the model in FOLDER, or go on training it."""
    join()
    torch.manual_seed(options.seed)
    joint = Joint()
    tokenizer = write_tokenizer(folder / "model")
    vae = read_exported(folder / "mask_vae" / VAE_NAME)
    optimiser = Optimiser(joint.groups(), options.highest_rate, options.muon_rate)
    run = Run(folder / "joint", {"joint": joint, "optimiser": optimiser})
    if run.is_new:
        begin(joint, folder, vae)
    held_out = draw(VALIDATION[: options.validation], vae)
    held_out_batches = batches(held_out, tokenizer, options.batch_size, VALIDATION.start, 0)
    current = None
    while run.step < options.last_step:
        number, at = divmod(run.step, SHARD // options.batch_size)
        if current is None or at == 0:
            reading = number * world() + rank()
            current = shard(folder / "scenes", FIRST_FOR_TRAINING + reading * SHARD % options.scenes, vae)
            asked = batches(current, tokenizer, options.batch_size, FIRST_FOR_TRAINING + reading, number)
        losses = learn(joint, current, asked[at])
        optimiser.step(rate_share(run.step, options.steps, WARM_UP_STEPS, options.final_share))
        run.stepped(losses)
        if run.step % options.log_every == 0 or run.step == options.steps:
            questions = run.step * options.batch_size * PER_SCENE * world()
            run.log(judge(joint, held_out, held_out_batches), questions=questions)
    run.save()


def learn(joint: Joint, scenes: Scenes, batch: Batch) -> dict[str, float]:
    """Gradients of the answers, and of what every patch should tell; returns the losses."""
    shown = scenes.take(batch.rows_S)
    features, embeddings = joint.see(shown)
    answers = answer_loss(read(joint.model, joint.locations, embeddings[batch.scene_Q], batch), SIGMAS[1])
    auxiliary = weighted(joint.heads.losses(features, patch_targets(shown), SIGMAS[0]))
    (answers + AUXILIARY_WEIGHT * auxiliary).backward()
    return {"answers": answers.item(), "auxiliary": auxiliary.item()}


if __name__ == "__main__":
    main()
