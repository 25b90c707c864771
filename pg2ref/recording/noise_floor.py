"""How far rounding alone carries each stage from the truth: the run again in float32 and in bf16, against float64.

The arithmetic is Transformers' (model/rounding.py): what a port that is right computes is about as far away. A floor is
the norm of the error over the norm of the stage, of the whole run up to there, errors of earlier stages included.
"""

from collections.abc import Callable, Sequence

from pg2ref.arrays import Array
from pg2ref.generation.generate import generate
from pg2ref.model.paligemma import PaliGemma, encode_images
from pg2ref.model.rounding import F32, ROUNDED_PRECISIONS, transformers_tables
from pg2ref.parity.difference import measure
from pg2ref.trace import Tap


class Distance:
    """A tap that measures each recorded stage against the truth, and keeps the errors alone."""

    def __init__(self, truth: Callable[[str], Array], wants: Callable[[str], bool]) -> None:
        self.truth, self.wants = truth, wants
        self.nrmse: dict[str, float] = {}

    def __call__(self, stage: str, array: Array) -> Array:
        """Measure."""
        if self.wants(stage):
            self.nrmse[stage] = measure(self.truth(stage), array).nrmse
        return array


def noise_floors(
    model: PaliGemma,
    images: Sequence[Array],
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    truth: Callable[[str], Array],
    wants: Callable[[str], bool],
) -> dict[str, dict[str, float]]:
    """The floor of each stage in each precision.

    Args:
        model: whose weights to compute with; its own operations do not matter.
        images: `pixel_values_CYX` of each.
        prompt_ids: of the prompt.
        answer_ids: the tokens of the true run, one more than it made steps; every run is given the same.
        truth: gives a stage of the run in float64.
        wants: which stages the truth has.
    """
    floors: dict[str, dict[str, float]] = {}
    for precision in ROUNDED_PRECISIONS:
        distance = Distance(truth, wants)
        run_rounded(model, precision, images, prompt_ids, answer_ids, distance)
        for stage, nrmse in distance.nrmse.items():
            floors.setdefault(stage, {})[precision] = nrmse
    return floors


def run_rounded(
    model: PaliGemma,
    precision: str,
    images: Sequence[Array],
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    tap: Tap,
) -> None:
    """Prefill, and a step for each answer token but the last, as Transformers rounds them."""
    tables = transformers_tables(precision)
    text = model._replace(dtype=F32, ops=tables.text, cache_dtype=F32)
    embeddings_ID = encode_images(text._replace(ops=tables.vision), images, tap=tap)
    given = iter(answer_ids)
    for _ in generate(
        text, embeddings_ID, prompt_ids, sampler=lambda _: next(given), max_new_tokens=len(answer_ids), tap=tap
    ):
        pass
