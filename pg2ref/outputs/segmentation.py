"""A decoded mask in the picture: where in the original the object is.

As big_vision's evaluator does it (evaluators/proj/paligemma/transfers/segmentation.py): the box is cut to whole
pixels, the mask of 64 x 64 is stretched over it bilinearly, and above 0 is the object.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pg2ref.arrays import Array


def paste(mask_YX: Array, box_xyxy_px: Sequence[float], size: tuple[int, int]) -> Array:
    """A float mask over a box as a bool mask of the whole picture of size (width, height).

    A box that is less than a pixel wide or high gives an empty mask, as there.
    """
    width, height = size
    x0, y0, x1, y1 = (int(edge) for edge in box_xyxy_px)
    whole_YX = np.zeros((height, width), bool)
    if x1 > x0 and y1 > y0:
        stretched = Image.fromarray(mask_YX.astype(np.float32)).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
        whole_YX[y0:y1, x0:x1] = np.asarray(stretched) > 0
    return whole_YX
