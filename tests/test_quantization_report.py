"""What quantising costs, recomputed another way: answers read at once rather than token by token, sums by NumPy."""

from pathlib import Path

import numpy as np
import pytest

import pg2ref
from pg2ref.api import Model
from pg2ref.arrays import Array, bf16_to_f32
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.checkpoint.quantize import quantize_checkpoint
from pg2ref.errors import CheckpointError
from pg2ref.evaluation.quantization import Report, StageErrors, open_pair, report, weight_errors
from pg2ref.model import paligemma
from pg2ref.quantized import QuantizedMatrix, dequantize

SCENE = Path(__file__).parent / "data" / "scene.png"
TOKENS = 6


@pytest.fixture(scope="module")
def pair(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """The reference for both, so that two ways of computing agree to rounding."""
    out = tmp_path_factory.mktemp("quantised") / "int4"
    quantize_checkpoint(load_checkpoint(small_folder), out, "int4", source_name="small", vision="int8")
    return pg2ref.load(small_folder, backend="numpy"), pg2ref.load(out, backend="numpy")


@pytest.fixture(scope="module")
def found(pair: tuple[Model, Model]) -> Report:
    return report(*pair, [SCENE], "caption en", max_new_tokens=TOKENS)


def test_scores(pair: tuple[Model, Model], found: Report) -> None:
    source, _ = pair
    prepared = source.prepare(SCENE, "caption en")
    answer = list(source.generate(SCENE, "caption en", max_new_tokens=TOKENS).token_ids)
    length = len(prepared.prompt_ids)
    probabilities = []
    for model in pair:
        embeddings = paligemma.encode_images(model.numbers, prepared.pixel_values)
        logits = paligemma.forward(model.numbers, embeddings, [*prepared.prompt_ids, *answer[:-1]], length)
        powers = np.exp(logits[length - 1 :].astype(np.float64))
        probabilities.append(powers / powers.sum(axis=1, keepdims=True))
    p, q = probabilities
    divergence = (p * np.log(p / q)).sum(axis=1)
    agreement = np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    assert 0 < agreement < 1, "choose a prompt that shows both"
    (score,) = found.scores
    assert (score.image, score.tokens) == (str(SCENE), len(answer))
    assert score.kl_mean == pytest.approx(divergence.mean(), rel=1e-3)
    assert score.kl_max == pytest.approx(divergence.max(), rel=1e-3)
    assert score.top1_agreement == agreement


def test_stages(pair: tuple[Model, Model], found: Report) -> None:
    exact, actual = (model.trace(SCENE, "caption en").stages for model in pair)
    assert len(found.stages) == 3 + 1 + 1 + 4 + 1
    for stage in found.stages:
        expected = np.linalg.norm(actual[stage.stage] - exact[stage.stage]) / np.linalg.norm(exact[stage.stage])
        assert stage.nrmse == pytest.approx(expected, rel=1e-4)


def test_weights(pair: tuple[Model, Model], found: Report) -> None:
    source, quantized = (model.checkpoint for model in pair)
    kinds: dict[str, list[tuple[Array, Array]]] = {"text/q_proj": [], "vision/fc2": [], "projector/linear": []}
    for name, matrix in quantized.weights.items():
        for kind, errors in kinds.items():
            tower, leaf = kind.split("/")
            is_of_tower = name.startswith({"text": "language", "vision": "vision", "projector": "multi"}[tower])
            if is_of_tower and name.endswith(f".{leaf}.weight"):
                assert isinstance(matrix, QuantizedMatrix)
                exact = bf16_to_f32(source.tensors[name]).astype(np.float64)
                errors.append((dequantize(matrix, np.dtype(np.float64)) - exact, exact))
    rows = {weight.kind: weight for weight in found.weights}
    for kind, errors in kinds.items():
        of_error, of_weights = (np.concatenate([part[i].reshape(-1) for part in errors]) for i in (0, 1))
        assert rows[kind].matrices == len(errors) > 0
        assert rows[kind].bits == (4 if kind.startswith("text") else 8)
        expected = np.linalg.norm(of_error) / np.linalg.norm(of_weights)
        assert rows[kind].relative_rms == pytest.approx(expected, rel=1e-5)


def test_several_images_add_up() -> None:
    """Squares are summed before the root is taken: an image with larger numbers counts for more."""
    errors = StageErrors()
    for exact, actual in [([3.0, 4.0], [3.0, 5.0]), ([0.0, 12.0], [2.0, 12.0])]:
        errors.expected = {"text/final_norm": np.array(exact)}
        errors("text/final_norm", np.array(actual))
        errors("text/layer_00/query", np.array(actual))  # not one that is compared
    (stage,) = errors.results()
    assert (stage.stage, stage.nrmse) == ("text/final_norm", pytest.approx(np.sqrt((1 + 4) / (25 + 144))))


def test_the_source_is_opened_in_float32(small_folder: Path, pair: tuple[Model, Model]) -> None:
    source, quantized = open_pair(str(small_folder), pair[1].checkpoint.folder)
    assert (source.described["dtype"], quantized.described["dtype"]) == ("f32", "int4")


def test_a_source_that_lacks_a_tensor(small_folder: Path, pair: tuple[Model, Model]) -> None:
    """The same config.json, and a tied output matrix that only one of the two stores."""
    source = load_checkpoint(small_folder)
    (name,) = [name for name in source.tensors if name.endswith("embed_tokens.weight")]
    without = source._replace(tensors={key: tensor for key, tensor in source.tensors.items() if key != name})
    with pytest.raises(
        CheckpointError, match=f"has no {name}, which the quantised .*: name the checkpoint it was made"
    ):
        list(weight_errors(without, pair[1].checkpoint))
