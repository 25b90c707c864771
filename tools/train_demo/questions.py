"""Questions about stored scenes, in batches of like length, as token ids.

A scene gets its questions either from the kinds with long answers or from those with short ones, and scenes are
grouped by length, so that little of a batch is padding. All is drawn from numbers that count batches: a run that
goes on later asks the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scene_store import Scenes, remembered
from seeds import ORDER_STREAM, TRAINING_TASK_STREAM
from torch import Tensor

from pg2ref.arrays import Array
from pg2ref.demo.drawing.dice import Dice
from pg2ref.demo.tasks import NOTHING, Task, draw_tasks
from pg2ref.inputs.tokenizer import Tokenizer

PER_SCENE = 3
LONG_PERCENT = 60
LONG = {"detect": 45, "caption": 37, "segment": 18}  # how often of each hundred
SHORT = {"count": 30, "colour": 10, "shape": 10, "ocr": 50}
NO_TEXT_SHARE = 4  # a scene without a word is asked for it this many times less often


class Question(NamedTuple):
    """A task as ids: `<bos>`, the prompt and a newline, then the answer and `<eos>`."""

    task: Task
    prompt_ids: list[int]
    answer_ids: list[int]

    @property
    def length(self) -> int:
        """Of both."""
        return len(self.prompt_ids) + len(self.answer_ids)


class Batch(NamedTuple):
    """Q questions, each about one of the scenes of a batch; T tokens, padded at the end."""

    rows_S: Array  # the scenes, as rows of their shard
    scene_Q: Tensor  # which of them is asked about
    ids_QT: Tensor
    is_answer_QT: Tensor
    is_there_QT: Tensor
    kinds: list[str]


def question(tokenizer: Tokenizer, task: Task) -> Question:
    """A task in token ids."""
    prompt_ids = [tokenizer.bos_id, *tokenizer.tokenize(task.prompt + "\n")]
    return Question(task, prompt_ids, [*tokenizer.tokenize(task.answer), tokenizer.eos_id])


def questions_of(scenes: Scenes, row: int, tokenizer: Tokenizer, dice: Dice) -> list[Question]:
    """PER_SCENE questions about a scene, all with long answers or all with short ones."""
    scene = remembered(scenes, row)
    shares = LONG if dice.percent(LONG_PERCENT) else SHORT
    chosen = []
    while len(chosen) < PER_SCENE:
        tasks = draw_tasks(scene, dice, lambda number_YX: scenes.codes_NO16[row, number_YX[0, 0]].tolist())
        of_kind = {task.kind.split()[0]: task for task in tasks}
        tickets = [kind for kind, share in shares.items() if kind in of_kind for _ in range(share)]
        task = of_kind[dice.choose(tickets)]
        if task.kind == "ocr" and task.answer == NOTHING and dice.below(NO_TEXT_SHARE):
            continue
        chosen.append(question(tokenizer, task))
    return chosen


def batches(scenes: Scenes, tokenizer: Tokenizer, batch_scenes: int, number: int, order: int) -> list[Batch]:
    """Questions about every scene of a shard; `number` tells one reading of it from another.

    Processes that step together give the same `order`: then their batches are of like length, and none waits long.
    """
    dice = Dice(number, TRAINING_TASK_STREAM)
    asked = [(row, questions_of(scenes, row, tokenizer, dice)) for row in range(len(scenes.seed_N))]
    asked.sort(key=lambda pair: max(one.length for one in pair[1]))
    groups = [asked[start : start + batch_scenes] for start in range(0, len(asked), batch_scenes)]
    return [collate(group) for group in Dice(order, ORDER_STREAM).shuffled(groups)]


def collate(asked: Sequence[tuple[int, Sequence[Question]]]) -> Batch:
    """Rows of a shard and their questions as one batch."""
    flat = [(place, one) for place, (_, questions) in enumerate(asked) for one in questions]
    longest = max(one.length for _, one in flat)
    ids_QT = torch.zeros(len(flat), longest, dtype=torch.long)
    is_answer_QT = torch.zeros(len(flat), longest, dtype=torch.bool)
    is_there_QT = torch.zeros(len(flat), longest, dtype=torch.bool)
    for at, (_, one) in enumerate(flat):
        ids_QT[at, : one.length] = torch.tensor(one.prompt_ids + one.answer_ids)
        is_answer_QT[at, len(one.prompt_ids) : one.length] = True
        is_there_QT[at, : one.length] = True
    return Batch(
        np.array([row for row, _ in asked]),
        torch.tensor([place for place, _ in flat]),
        ids_QT,
        is_answer_QT,
        is_there_QT,
        [one.task.kind for _, one in flat],
    )
