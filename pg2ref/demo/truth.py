"""What is in a scene, as JSON: the ground truth beside the picture."""

from typing import Any

from pg2ref.demo.scene import Scene
from pg2ref.outputs.rle import encode_mask


def truth_of(scene: Scene) -> dict[str, Any]:
    """`{"size": [width, height], "objects": [{"label", "box_xyxy", "mask"}], "text": str or null}`.

    The largest object comes first. Masks, in COCO's run lengths, hold what can be seen of an object, not what another
    one hides; boxes are around the masks, in pixels, their right and lower edge the first pixel outside.
    """
    return {
        "size": [scene.size_px, scene.size_px],
        "objects": [
            {"label": one.label, "box_xyxy": list(one.box_xyxy_px), "mask": encode_mask(one.mask_YX)}
            for one in scene.objects
        ],
        "text": scene.text,
    }
