"""What quantising costs: weights, stages and scores of a quantised checkpoint against the one it was made from.

The source is computed in float32, the quantised checkpoint as it is by default: the difference is what a user gets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pg2ref.answer import Prepared
from pg2ref.api import Model, load
from pg2ref.arrays import Array, widen
from pg2ref.checkpoint.loader import Checkpoint
from pg2ref.checkpoint.locate import locate
from pg2ref.checkpoint.manifest import read_manifest
from pg2ref.checkpoint.safetensors_file import forget_pages
from pg2ref.checkpoint.tensor_table import canonical_name
from pg2ref.errors import CheckpointError, UsageError
from pg2ref.generation.given import divergence, scores_of_answer
from pg2ref.generation.sampling import greedy
from pg2ref.inputs.image import ImageSource
from pg2ref.quantized import BLOCK_OUTPUTS, QuantizedMatrix, widen_rows
from pg2ref.trace import Tap, Trace

WEIGHTS_AT_ONCE = 1 << 20
F32 = np.dtype(np.float32)


@dataclass(frozen=True)
class WeightError:
    """All quantised matrices of one kind: root mean square of the error over that of the weights."""

    kind: str  # "text/q_proj", say
    bits: int
    matrices: int
    relative_rms: float


@dataclass(frozen=True)
class StageError:
    """One stage of reading images and prompt, over all images: rms of the error over rms of the stage."""

    stage: str
    nrmse: float


@dataclass(frozen=True)
class ScoreError:
    """The scores of each place of the source's greedy answer to one image, both given the same tokens before it."""

    image: str
    tokens: int
    kl_mean: float  # nats, of the source's distribution from the quantised one's
    kl_max: float
    top1_agreement: float  # share of places where both have the same best token


@dataclass(frozen=True)
class Report:
    """Everything `pg2ref quantize --report` says."""

    weights: tuple[WeightError, ...]
    stages: tuple[StageError, ...]
    scores: tuple[ScoreError, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class StageErrors:
    """A tap (trace.py) that sums up how far each stage is from the same stage of a trace."""

    def __init__(self) -> None:
        self.expected: Mapping[str, Array] = {}
        self.squares: dict[str, tuple[float, float]] = {}  # stage -> of the error, of what was expected

    def __call__(self, stage: str, array: Array) -> Array:
        """Compare."""
        expected = self.expected.get(stage)
        if expected is not None:
            error, size = self.squares.get(stage, (0.0, 0.0))
            self.squares[stage] = error + _square(array - expected), size + _square(expected)
        return array

    def wants(self, stage: str) -> bool:
        """Nothing that costs extra."""
        return False

    def results(self) -> tuple[StageError, ...]:
        """In the order of computation."""
        return tuple(StageError(stage, _ratio(*squares)) for stage, squares in self.squares.items())


def is_reported(stage: str) -> bool:
    """The end of each layer, of the projector and of each tower; not those of later tokens."""
    ends = stage.endswith("/out") and not stage.startswith("step_")
    return ends or stage in ("vision/post_layernorm", "text/final_norm")


def open_pair(source_name: str, quantized_folder: Path) -> tuple[Model, Model]:
    """The two that `report` compares: the source in f32, so that its own rounding adds nothing.

    Raises:
        UsageError: one is not quantised, or the other is, or they are not of one shape.
    """
    quantized = load(quantized_folder)
    if quantized.checkpoint.manifest is None:
        raise UsageError(f"{quantized_folder}: expected a checkpoint that `pg2ref quantize` has written")
    if read_manifest(locate(source_name)) is not None:
        raise UsageError(
            f"{source_name}: quantised itself, expected the checkpoint that {quantized_folder} was made from"
        )
    source = load(source_name, precision="f32")
    if source.config != quantized.config:
        raise UsageError(
            f"{quantized_folder} is no quantised {source_name}: their config.json differ; name the checkpoint it was "
            "made from"
        )
    return source, quantized


def report(
    source: Model,
    quantized: Model,
    images: Sequence[ImageSource],
    prompt: str,
    *,
    max_new_tokens: int = 16,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Report:
    """Compare what `open_pair` has opened; each image is asked the prompt by itself.

    `max_new_tokens` places of each answer are compared; `on_bytes` hears how many bytes of the source's weights are.
    """
    weights = tuple(weight_errors(source.checkpoint, quantized.checkpoint, on_bytes))
    errors = StageErrors()
    scores = tuple(compare_answers(source, quantized, image, prompt, max_new_tokens, errors) for image in images)
    return Report(weights, errors.results(), scores)


def weight_errors(
    source: Checkpoint, quantized: Checkpoint, on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[WeightError]:
    """The error of each kind of quantised matrix, every weight counted.

    Raises:
        CheckpointError: the quantised checkpoint has a tensor that the source lacks.
    """
    originals = {canonical_name(name): tensor for name, tensor in source.tensors.items()}
    kinds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for name, matrix in quantized.weights.items():
        canonical = canonical_name(name)
        if canonical not in originals:
            raise CheckpointError(
                f"{source.folder} has no {name}, which the quantised {quantized.folder} has: name the checkpoint it "
                "was made from"
            )
        if isinstance(matrix, QuantizedMatrix):
            squares = _matrix_error(originals[canonical], matrix)
            kinds.setdefault((_kind(canonical), matrix.bits), []).append(squares)
            for tensor in (originals[canonical], matrix.codes):
                forget_pages(tensor)
        on_bytes(originals[canonical].nbytes)
    for (kind, bits), squares_of_each in kinds.items():
        error, size = np.sum(squares_of_each, axis=0)
        yield WeightError(kind, bits, len(squares_of_each), _ratio(error, size))


def compare_answers(
    source: Model, quantized: Model, image: ImageSource, prompt: str, max_new_tokens: int, errors: StageErrors
) -> ScoreError:
    """Let the source answer, and the other score the same answer; `errors` takes in the stages."""
    prepared = source.prepare(image, prompt)
    trace = Trace(is_reported)
    answer, expected = answer_of(source, prepared, max_new_tokens, trace)
    errors.expected = trace.stages
    _, actual = answer_of(quantized, prepared, len(answer), errors, given=answer)
    pairs = list(zip(expected, actual, strict=True))
    divergences = [divergence(*pair) for pair in pairs]
    agreed = [greedy(p_V) == greedy(q_V) for p_V, q_V in pairs]
    return ScoreError(
        image=str(prepared.images[0].path or "image"),
        tokens=len(answer),
        kl_mean=float(np.mean(divergences)),
        kl_max=max(divergences),
        top1_agreement=float(np.mean(agreed)),
    )


def answer_of(
    model: Model, prepared: Prepared, max_new_tokens: int, tap: Tap, given: Sequence[int] | None = None
) -> tuple[list[int], list[Array]]:
    """The scores of an answer; numbers that are not finite become an error that names the tensor."""
    inputs = prepared.pixel_values, prepared.prompt_ids, max_new_tokens
    return model.compute(lambda: scores_of_answer(model.numbers, *inputs, given=given, tap=tap))


def _matrix_error(original: Array, matrix: QuantizedMatrix) -> tuple[float, float]:
    """Squares of the error and of the weights."""
    error = size = 0.0
    rows_at_once = max(1, WEIGHTS_AT_ONCE // matrix.shape[1] // BLOCK_OUTPUTS) * BLOCK_OUTPUTS
    for start in range(0, matrix.shape[0], rows_at_once):
        exact_OD = widen(original[start : start + rows_at_once], F32)
        error += _square(widen_rows(matrix, F32, start, start + rows_at_once) - exact_OD)
        size += _square(exact_OD)
    return error, size


def _kind(canonical: str) -> str:
    """What matrices are counted together: those of one leaf in all layers of a tower."""
    tower = {"vision_tower": "vision", "multi_modal_projector": "projector"}.get(canonical.split(".")[0], "text")
    return f"{tower}/{canonical.split('.')[-2]}"


def _square(values: Array) -> float:
    """Sum of squares."""
    flat = np.ascontiguousarray(values, np.float64).reshape(-1)
    return float(flat @ flat)


def _ratio(error: float, size: float) -> float:
    """Root of the ratio of two sums of squares; weights that are all 0 are kept exactly."""
    return float(np.sqrt(error / size)) if size else 0.0
