"""Right or wrong: answers against the truth of a scene, by the rules of the table of results."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.demo.languages import LANGUAGES
from pg2ref.demo.scene import Scene
from pg2ref.outputs.objects import DetectedObject

HALF = 0.5


class Found(NamedTuple):
    """What a detection or segmentation was worth; objects are matched one to one within a label, the best pair first.

    Pairs without overlap are no matches.
    """

    matched_iou: tuple[float, ...]  # of the boxes of each matched pair
    expected: int  # how many objects there are
    given: int  # how many the answer holds
    mask_iou: tuple[float, ...]  # of each object there is, 0 where it was not found


def same_objects(answer: str, expected: str, language: str) -> bool:
    """Whether a caption names the same objects in the same numbers, in whatever order."""
    return sorted(_phrases(answer, language)) == sorted(_phrases(expected, language))


def _phrases(caption: str, language: str) -> list[str]:
    return re.split(f", |{re.escape(LANGUAGES[language].last_joint)}", caption)


def match(scene: Scene, labels: Sequence[str], answer: Sequence[DetectedObject]) -> Found:
    """An answer's objects against those of the labels that were asked for."""
    true = [one for one in scene.objects if one.label in labels]
    pairs = sorted(
        (
            (overlap(one.box_xyxy_px, given.box_xyxy_px), i, j)
            for i, one in enumerate(true)
            for j, given in enumerate(answer)
            if one.label == given.label
        ),
        reverse=True,
    )
    partner: dict[int, int] = {}
    matched = []
    for iou, i, j in pairs:
        if iou > 0 and i not in partner and j not in partner.values():
            partner[i] = j
            matched.append(iou)
    masks = [_mask_iou(one.mask_YX, answer[partner[i]].mask_YX) if i in partner else 0.0 for i, one in enumerate(true)]
    return Found(tuple(matched), len(true), len(answer), tuple(masks))


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return both / (areas - both)


def _mask_iou(true_YX: Array, seen_YX: Array | None) -> float:
    if seen_YX is None:
        return 0.0
    return float(np.count_nonzero(true_YX & seen_YX) / np.count_nonzero(true_YX | seen_YX))


class Tally:
    """Adds up what the answers were worth; `rows` is the table."""

    def __init__(self) -> None:
        self.right: dict[str, list[bool]] = defaultdict(list)
        self.found: dict[str, list[Found]] = defaultdict(list)
        self.kept: list[float] = []  # IoU of each object's mask that went through the codes alone

    def add(self, other: "Tally") -> None:
        """Join what was counted apart."""
        for name, right in other.right.items():
            self.right[name] += right
        for name, found in other.found.items():
            self.found[name] += found
        self.kept += other.kept

    def rows(self) -> dict[str, tuple[float, int]]:
        """A value and how many answers or objects it is a mean of, by name."""
        rows = {name: (float(np.mean(values)), len(values)) for name, values in self.right.items()}
        if boxes := self.found["detect"]:
            ious = [iou for one in boxes for iou in one.matched_iou]
            hits = sum(iou >= HALF for iou in ious)
            expected, given = sum(one.expected for one in boxes), sum(one.given for one in boxes)
            rows["detect: mean IoU of matched objects"] = (float(np.mean(ious)) if ious else 0.0, len(ious))
            rows["detect: recall at IoU 0.5"] = (hits / max(expected, 1), expected)
            rows["detect: precision at IoU 0.5"] = (hits / max(given, 1), given)
        if masks := [iou for one in self.found["segment"] for iou in one.mask_iou]:
            rows["segment: mean IoU of the mask"] = (float(np.mean(masks)), len(masks))
        if self.kept:
            rows["mask VAE alone: mean IoU"] = (float(np.mean(self.kept)), len(self.kept))
        return rows
