"""The objects of an answer in the picture: label, box in pixels, score, mask."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pg2ref.arrays import Array
from pg2ref.model.vqvae import MaskDecoder, decode_codes
from pg2ref.outputs.detection import BOX_TOKENS, TOKEN, box_xyxy_px, parse
from pg2ref.outputs.rle import encode_mask
from pg2ref.outputs.segmentation import paste

NO_DECODER = (
    "the answer holds masks, but no mask decoder was found: boxes only. Put big_vision's vae-oid.npz into the model's "
    "folder, or name it with --vae (in Python: vae=)"
)


@dataclass(frozen=True)
class DetectedObject:
    """One object in the original picture, its origin at the top left corner."""

    label: str  # may be empty
    box_xyxy_px: tuple[float, float, float, float]
    box_yxyx_bins: tuple[int, int, int, int]  # 0 to 1023, as the answer has them
    score: float | None  # geometric mean of the probabilities of its four location tokens; None where unknown
    mask_YX: Array | None = field(repr=False, compare=False)  # bool, of the whole picture

    def to_dict(self) -> dict[str, Any]:
        """The JSON object as Python values; the mask in COCO's run lengths."""
        return {
            "label": self.label,
            "box_xyxy": list(self.box_xyxy_px),
            "box_loc_yxyx": list(self.box_yxyx_bins),
            "score": self.score,
            "mask": None if self.mask_YX is None else encode_mask(self.mask_YX),
        }


def find_objects(
    text: str,
    tokens: Sequence[tuple[str, float]],
    size: tuple[int, int],
    loc_scale: int,
    decoder: MaskDecoder | None,
) -> tuple[tuple[DetectedObject, ...], tuple[str, ...]]:
    """The objects of an answer, and what in it could not be understood.

    Args:
        text: the answer.
        tokens: text and log-probability of each of its tokens, for the scores.
        size: width and height of the original picture.
        loc_scale: 1023 or 1024, see `detection.box_xyxy_px`.
        decoder: of the masks; without one there are none, and a problem says so.
    """
    detections, problems = parse(text)
    logprobs = [logprob for piece, logprob in tokens if TOKEN.fullmatch(piece)]
    if len(logprobs) != len(TOKEN.findall(text)):  # spelled out of other pieces: nothing to tell them apart by
        logprobs = []
    objects = []
    for label, bins, codes, first in detections:
        box = box_xyxy_px(bins, size, loc_scale)
        mask_YX = None
        if codes and decoder is not None:
            mask_YX = paste(decode_codes(decoder, np.array(codes)), box, size)
        of_box = logprobs[first : first + BOX_TOKENS]
        score = math.exp(sum(of_box) / BOX_TOKENS) if of_box else None
        objects.append(DetectedObject(label, box, bins, score, mask_YX))
    if decoder is None and any(codes for _, _, codes, _ in detections):
        problems += (NO_DECODER,)
    return tuple(objects), problems
