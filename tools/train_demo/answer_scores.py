"""Quick scores during training, without generating.

Greedy decoding is right to the end exactly where the best token is right in every place. Boxes are judged by their
overlap, given the right tokens before.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from heads import box_overlap
from language import Reading, is_location
from questions import Batch
from vocabulary import FIRST_LOCATION

BOX = 4


@torch.no_grad()
def scores(readings: Iterable[tuple[Reading, Batch]]) -> dict[str, float]:
    """Shares by kind of question; `detect` and `segment` count as right where all words are, and by overlap."""
    right: dict[str, list[float]] = defaultdict(list)
    overlaps: list[torch.Tensor] = []
    for reading, batch in readings:
        best_A = reading.logits_AV.argmax(-1)
        located_A = is_location(reading.target_A)
        good_A = (best_A == reading.target_A) | (located_A & is_location(best_A))
        wrong_Q = torch.zeros(len(batch.kinds)).index_add_(0, reading.question_A, (~good_A).float())
        for kind, wrong in zip(batch.kinds, wrong_Q.tolist(), strict=True):
            right[kind.split()[0]].append(wrong == 0)
        seen, true = (ids[located_A].view(-1, BOX).float() - FIRST_LOCATION for ids in (best_A, reading.target_A))
        overlaps.append(box_overlap(seen, true))
    overlap = torch.cat(overlaps)
    measured = {kind: sum(values) / len(values) for kind, values in sorted(right.items())}
    return measured | {"box_iou": float(overlap.mean()), "box_50": float((overlap > 0.5).float().mean())}
