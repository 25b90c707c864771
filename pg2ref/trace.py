"""Every stage of a forward pass has a name; a tap is what listens to them.

A model function calls `tap(stage, array)` at each stage and goes on with the same array. A stage that costs extra
to produce (attention weights) is offered only if `tap.wants(stage)`. Stage names are paths of glossary words:

    pixel_values  vision/patch_embeddings  vision/layer_00/query ... vision/layer_00/out ... vision/post_layernorm
    projector/out  prefix/embeddings  text/layer_00/query ... text/layer_00/out ... text/final_norm
    logits_before_cap  logits

With several images, the stages of the second begin with `image_1/`, and so on; those of the first token after the
prompt begin with `step_001/`.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from pg2ref.arrays import Array
from pg2ref.errors import Pg2RefError

BLOCK_ENDS = (
    "pixel_values",
    "vision/patch_embeddings",
    "/out",
    "vision/post_layernorm",
    "prefix/embeddings",
    "text/final_norm",
    "logits",
)  # of the names of stages that lie between the blocks of the model


class Tap(Protocol):
    """What model code calls at every stage; it must not change the array."""

    def __call__(self, stage: str, array: Array) -> Array:
        """Look at `array`, the value of `stage`, and return it."""

    def wants(self, stage: str) -> bool:
        """Whether a stage that is computed for the tap's sake alone should be."""


class NoTap:
    """Listens to nothing."""

    def __call__(self, stage: str, array: Array) -> Array:
        """Return the array."""
        return array

    def wants(self, stage: str) -> bool:
        """Never."""
        return False


no_tap = NoTap()


class Prefixed:
    """Passes everything on under longer names: `image_1/vision/...` of a second image, say."""

    def __init__(self, tap: Tap, prefix: str):
        self.tap, self.prefix = tap, prefix

    def __call__(self, stage: str, array: Array) -> Array:
        """Pass the stage on."""
        return self.tap(self.prefix + stage, array)

    def wants(self, stage: str) -> bool:
        """What the inner tap wants under the longer name."""
        return self.tap.wants(self.prefix + stage)


class Both:
    """Passes everything on to two taps."""

    def __init__(self, first: Tap, second: Tap):
        self.first, self.second = first, second

    def __call__(self, stage: str, array: Array) -> Array:
        """Show the stage to both."""
        self.first(stage, array)
        self.second(stage, array)
        return array

    def wants(self, stage: str) -> bool:
        """What either wants."""
        return self.first.wants(stage) or self.second.wants(stage)


class Trace:
    """Records stages in the order in which they were computed; `points` chooses which, all of them by default."""

    def __init__(self, points: Callable[[str], bool] = lambda stage: True):
        self.points = points
        self.stages: dict[str, Array] = {}

    def __call__(self, stage: str, array: Array) -> Array:
        """Keep a copy, so that later in-place code cannot rewrite history."""
        if self.points(stage):
            self.stages[stage] = array.copy()
        return array

    def wants(self, stage: str) -> bool:
        """Whether `points` chooses the stage."""
        return self.points(stage)


class NotFiniteError(Pg2RefError):
    """A stage holds NaN or infinity. Mostly a weight does (api.py looks for it); else the numbers overflow."""

    def __init__(self, stage: str):
        super().__init__(
            f"{stage} holds NaN or infinity although every weight is finite: a number outgrew its type; "
            "try --precision f64"
        )
        self.stage = stage


class Guard:
    """Stops at the first stage that is not finite, and passes all others on to `tap`.

    It looks where a number that is not finite last shows: at the end of each layer, and before each soft cap, which
    makes an infinity finite again.
    """

    ENDINGS = ("/out", "/query", "/key", "logits_before_cap")

    def __init__(self, tap: Tap = no_tap):
        self.tap = tap

    def __call__(self, stage: str, array: Array) -> Array:
        """Raises NotFiniteError where the stage is not finite."""
        if stage.endswith(self.ENDINGS) and not np.isfinite(array).all():
            raise NotFiniteError(stage)
        return self.tap(stage, array)

    def wants(self, stage: str) -> bool:
        """What the inner tap wants."""
        return self.tap.wants(stage)
