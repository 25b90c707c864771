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
from lessons import Lesson, Lessons
from optimiser import Optimiser
from options import Options, training_options
from oracle import Oracle
from patch_targets import patch_targets
from run import Run
from stage import begin, train
from vocabulary import FIRST_LOCATION, VOCAB_SIZE

SIGMAS = (10.0, 3.0)  # of the soft targets of locations, in bins, from the first step to the last
DEFAULTS = Options(steps=10000, batch_size=8, highest_rate=2e-3, muon_rate=2e-3, final_share=0.25, scenes=65536)


@training_options(DEFAULTS)
def main(folder: Path, options: Options) -> None:
    """Train the language model in FOLDER, or go on training it."""
    begin(options)
    model = build(model_config(FIRST_LOCATION, VOCAB_SIZE))
    language = model.model.language_model
    locations, oracle = LocationTable(language.config.hidden_size), Oracle(language.config.hidden_size)
    trained = {"language": language, "locations": locations, "oracle": oracle}
    optimiser = Optimiser([(part, 1.0) for part in trained.values()], options.highest_rate, options.muon_rate)
    run = Run(folder / "language", trained | {"optimiser": optimiser})
    lessons = Lessons(folder, options)

    def answers(lesson: Lesson) -> Reading:
        told = oracle(patch_targets(lesson.scenes))
        return read(model, locations, lesson.of_questions(told), lesson.batch)

    def learn(lesson: Lesson) -> dict[str, float]:
        sigma = SIGMAS[0] * (SIGMAS[1] / SIGMAS[0]) ** (run.step / options.steps)
        loss = answer_loss(answers(lesson), sigma)
        loss.backward()
        return {"answers": loss.item()}

    @torch.no_grad()
    def judge() -> dict[str, float]:
        return scores((answers(lesson), lesson.batch) for lesson in lessons.judging)

    counted = {"questions": lessons.questions}
    train(run, optimiser, options, lessons_of=lessons.of_shard, learn=learn, judge=judge, counted=counted)


if __name__ == "__main__":
    main()
