"""The loop that the three stages have in common: a lesson a step, a line of the log now and then, and a save."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from optimiser import Optimiser, rate_share
from options import Options
from processes import join, world
from run import Run
from scene_store import steps_in_shard

WARM_UP_STEPS = 100
Lesson = TypeVar("Lesson")
Losses = dict[str, float]


def begin(options: Options) -> None:
    """Meet the other processes, and make the fresh weights the same in all of them."""
    join()
    torch.manual_seed(options.seed)


def train(
    run: Run,
    optimiser: Optimiser,
    options: Options,
    *,
    lessons_of: Callable[[int], Sequence[Lesson]],
    learn: Callable[[Lesson], Losses],
    judge: Callable[[], dict[str, float]],
    counted: dict[str, int],
) -> None:
    """Take the steps that are left of a run.

    Args:
        run: where it stands; `run.step` is right while `learn` and `judge` are called.
        optimiser: of everything that `learn` leaves gradients in.
        options: of the command line.
        lessons_of: the lessons of this process in the shard that is read as the n-th.
        learn: leaves the gradients of a lesson, and gives its losses.
        judge: measures on scenes that are not trained on.
        counted: what a lesson of one process holds, `questions` say, for the log.
    """
    lessons: Sequence[Lesson] = ()
    while run.step < options.last_step:
        number, at = divmod(run.step, steps_in_shard(options.batch_size))
        if not lessons or at == 0:
            lessons = lessons_of(number)
        losses = learn(lessons[at])
        optimiser.step(rate_share(run.step, options.steps, WARM_UP_STEPS, options.final_share))
        run.stepped(losses)
        if run.step % options.log_every == 0 or run.step == options.steps:
            run.log(judge(), **{unit: run.step * count * world() for unit, count in counted.items()})
    run.save()
