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
from language import LocationTable, Reading, answer_loss, read
from lessons import Lesson, Lessons
from optimiser import Optimiser
from options import Options, training_options
from oracle import Oracle
from patch_targets import patch_targets, pixel_tensor
from run import Run
from scene_store import Scenes, training_shard
from stage import begin, train
from torch import Tensor, nn
from transformers import PaliGemmaForConditionalGeneration
from vocabulary import FIRST_LOCATION, VOCAB_SIZE

SIGMAS = (4.0, 1.0)  # of locations, in the tower's edges and in answers
TOWER_SHARE = 0.5  # of the rate
AUXILIARY_WEIGHT = 0.3
FIT_SHARDS, RIDGE = 2, 1.0
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


def take_over(joint: Joint, folder: Path, lessons: Lessons) -> None:
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
    shards = [training_shard(folder, number, lessons.options.scenes, lessons.vae) for number in range(FIT_SHARDS)]
    fit_projector(joint, oracle, shards)


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


def answers(joint: Joint, embeddings: Tensor, lesson: Lesson) -> Reading:
    """What the model says, given the image embeddings of the lesson's scenes."""
    return read(joint.model, joint.locations, lesson.of_questions(embeddings), lesson.batch)


def learn(joint: Joint, lesson: Lesson) -> dict[str, float]:
    """Gradients of the answers, and of what every patch should tell; returns the losses."""
    features, embeddings = joint.see(lesson.scenes)
    answered = answer_loss(answers(joint, embeddings, lesson), SIGMAS[1])
    auxiliary = weighted(joint.heads.losses(features, patch_targets(lesson.scenes), SIGMAS[0]))
    (answered + AUXILIARY_WEIGHT * auxiliary).backward()
    return {"answers": answered.item(), "auxiliary": auxiliary.item()}


@torch.no_grad()
def judge(joint: Joint, lessons: Lessons) -> dict[str, float]:
    """Scores of answers and heads on scenes not trained on."""
    features, embeddings = joint.see(lessons.held_out)
    readings = ((answers(joint, embeddings[one.batch.rows_S], one), one.batch) for one in lessons.judging)
    seen = measure(joint.heads, features, patch_targets(lessons.held_out))
    return scores(readings) | {f"tower_{name}": value for name, value in seen.items()}


@training_options(DEFAULTS)
def main(folder: Path, options: Options) -> None:
    """Train the model in FOLDER, or go on training it."""
    begin(options)
    joint = Joint()
    optimiser = Optimiser(joint.groups(), options.highest_rate, options.muon_rate)
    run = Run(folder / "joint", {"joint": joint, "optimiser": optimiser})
    lessons = Lessons(folder, options)
    if run.is_new:
        take_over(joint, folder, lessons)
    train(
        run,
        optimiser,
        options,
        lessons_of=lessons.of_shard,
        learn=lambda lesson: learn(joint, lesson),
        judge=lambda: judge(joint, lessons),
        counted={"questions": lessons.questions},
    )


if __name__ == "__main__":
    main()
