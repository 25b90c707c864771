"""Objects as the package supervision holds them; imported where that package is installed."""

from collections.abc import Sequence

import numpy as np
import supervision

from pg2ref.outputs.objects import DetectedObject


def detections(objects: Sequence[DetectedObject]) -> supervision.Detections:
    """Boxes in pixels, scores, and masks where every object has one; class ids count the labels as they come."""
    if not objects:
        return supervision.Detections.empty()
    labels = list(dict.fromkeys(one.label for one in objects))
    masks = [one.mask_YX for one in objects if one.mask_YX is not None]
    return supervision.Detections(
        xyxy=np.array([one.box_xyxy_px for one in objects], np.float32),
        confidence=np.array([1.0 if one.score is None else one.score for one in objects], np.float32),
        mask=np.stack(masks) if len(masks) == len(objects) else None,
        class_id=np.array([labels.index(one.label) for one in objects]),
        data={"class_name": np.array([one.label for one in objects])},
    )
