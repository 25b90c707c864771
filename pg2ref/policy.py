"""Where libraries differ, the choice has a name; a preset is one library's set of choices.

The default, `transformers`, is the parity target (Transformers 5.23). What each name means is said where it is
computed: `resize` in inputs/image.py, `window` in model/masks.py, `loc_scale` in outputs/detection.py.
"""

from collections.abc import Mapping
from typing import NamedTuple

BACKENDS = ("numpy", "numba")
PRECISIONS = ("f32", "bf16", "f64", "int8", "int4")  # what is meant by them: model/backend.py
INTEGER_PRECISIONS = ("int8", "int4")  # those of quantised checkpoints
RESIZE_POLICIES = ("bicubic", "bilinear-aa", "bilinear", "nearest")
WINDOW_POLICIES = ("transformers", "big_vision", "keras", "gemma_cpp", "transformers_4")
LOC_SCALES = (1023, 1024)


class Policy(NamedTuple):
    """One choice for each disputed question."""

    resize: str
    window: str
    loc_scale: int = 1023


PRESETS: Mapping[str, Policy] = {
    "transformers": Policy(resize="bicubic", window="transformers"),  # 5.23, with its Pillow image processor
    "big_vision": Policy(resize="bilinear", window="big_vision"),  # pp/ops_image.py, the default of `resize`
    # keras-hub image_converter.py, the defaults; its cropping to the aspect ratio and rounding are not reproduced
    "keras": Policy(resize="bilinear", window="keras"),
    "gemma_cpp": Policy(resize="nearest", window="gemma_cpp"),  # paligemma/image.cc, gemma/attention.cc
}
