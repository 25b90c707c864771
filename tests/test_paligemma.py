"""Laws of the whole model: who may influence whom, what is refused, and what a trace holds."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
from closeness import assert_close
from small_models import CASES, Inputs

from pg2ref.arrays import Array, bf16_to_f32
from pg2ref.errors import PromptError, ShapeError
from pg2ref.model import paligemma
from pg2ref.model.paligemma import PaliGemma
from pg2ref.model.siglip import patchify
from pg2ref.policy import WINDOW_POLICIES
from pg2ref.trace import Guard, NotFiniteError, Prefixed, Trace, no_tap


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("base", "two_images", "image_id_outside_vocabulary")
    folders = {name: tmp_path_factory.mktemp(name) for name in names}
    for name, folder in folders.items():
        small_models.write_folder(folder, CASES[name])
    return folders


def logits(model: PaliGemma, inputs: Inputs, **changed: Any) -> Array:
    """Scores of every row."""
    inputs = inputs._replace(**changed)
    embeddings = paligemma.encode_images(model, list(inputs.pixel_values))
    return paligemma.forward(model, embeddings, inputs.ids, inputs.prefix_length)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_the_model_s_in_every_stage(folders: dict[str, Path], dtype: Any) -> None:
    stages = small_models.our_stages(
        small_models.open_model(folders["base"], dtype), small_models.make_inputs(CASES["base"])
    )
    types = {stage: array.dtype for stage, array in stages.items() if not stage.endswith("attention_weights")}
    assert set(types.values()) == {np.dtype(dtype)}


@pytest.mark.parametrize("policy", WINDOW_POLICIES)
def test_the_answer_never_influences_the_prefix(folders: dict[str, Path], policy: str) -> None:
    model = small_models.open_model(folders["base"])._replace(window_policy=policy)
    inputs = small_models.make_inputs(CASES["base"])
    start = inputs.prompt_length
    other = [*inputs.ids[:start], *(token_id - 1 for token_id in inputs.ids[start:])]
    before, after = logits(model, inputs), logits(model, inputs, ids=other)
    np.testing.assert_array_equal(before[:start], after[:start])
    assert (np.abs(before[start:] - after[start:]).max(axis=1) > 1e-3).all()


def test_a_later_answer_token_never_influences_an_earlier_one(folders: dict[str, Path]) -> None:
    model = small_models.open_model(folders["base"])
    inputs = small_models.make_inputs(CASES["base"])
    other = [*inputs.ids[:-2], 7, inputs.ids[-1]]
    before, after = logits(model, inputs), logits(model, inputs, ids=other)
    np.testing.assert_array_equal(before[:-2], after[:-2])
    assert (np.abs(before[-2:] - after[-2:]).max(axis=1) > 1e-3).all()


def test_the_end_of_the_prompt_influences_its_beginning(folders: dict[str, Path]) -> None:
    model = small_models.open_model(folders["base"])
    inputs = small_models.make_inputs(CASES["base"])
    last = inputs.prompt_length - 1
    other = [*inputs.ids[:last], 7, *inputs.ids[last + 1 :]]
    assert np.abs(logits(model, inputs)[0] - logits(model, inputs, ids=other)[0]).max() > 1e-3
    causal = logits(model, inputs, prefix_length=0)[:last]
    np.testing.assert_array_equal(causal, logits(model, inputs, ids=other, prefix_length=0)[:last])


@pytest.mark.parametrize("policy", WINDOW_POLICIES)
def test_a_window_of_the_whole_length_changes_nothing(folders: dict[str, Path], policy: str) -> None:
    model = small_models.open_model(folders["base"])._replace(window_policy=policy)
    inputs = small_models.make_inputs(CASES["base"])

    def with_window(window: int | None) -> Array:
        text = dataclasses.replace(model.config.text, sliding_window=window)
        return logits(model._replace(config=dataclasses.replace(model.config, text=text)), inputs)

    np.testing.assert_array_equal(with_window(len(inputs.ids)), with_window(None))
    if policy != "big_vision":
        assert np.abs(with_window(len(inputs.ids) - 1) - with_window(None)).max() > 1e-6


# Images.


def test_the_order_of_images_matters(folders: dict[str, Path]) -> None:
    model = small_models.open_model(folders["two_images"])
    inputs = small_models.make_inputs(CASES["two_images"])
    exchanged = logits(model, inputs, pixel_values=inputs.pixel_values[::-1])
    assert np.abs(logits(model, inputs) - exchanged)[-1].max() > 1e-3


def test_two_images_are_encoded_apart_and_in_order(folders: dict[str, Path]) -> None:
    model = small_models.open_model(folders["two_images"])
    first, second = small_models.make_inputs(CASES["two_images"]).pixel_values
    both = paligemma.encode_images(model, [first, second])
    assert both.shape == (8, 32)
    np.testing.assert_array_equal(both[:4], paligemma.encode_images(model, [first]))
    np.testing.assert_array_equal(both[4:], paligemma.encode_images(model, [second]))
    trace = Trace()
    paligemma.encode_images(model, [first, second], tap=trace)
    np.testing.assert_array_equal(trace.stages["pixel_values"], first)
    np.testing.assert_array_equal(trace.stages["image_1/pixel_values"], second)
    np.testing.assert_array_equal(trace.stages["image_1/projector/out"], both[4:])


def test_image_rows_are_not_scaled_and_text_rows_are(folders: dict[str, Path]) -> None:
    model = small_models.open_model(folders["base"])
    images = np.arange(4 * 32, dtype=np.float32).reshape(4, 32)
    embeddings = paligemma.embed_prefix(model, images, [5, 299, 299, 17, 299, 299])
    np.testing.assert_array_equal(embeddings[[1, 2, 4, 5]], images)  # whatever stands between them
    rows = bf16_to_f32(model.params.language_model.embed_tokens[[5, 17]]).astype(np.float64)
    assert_close(embeddings[[0, 3]], rows * np.sqrt(32), "linear", terms=1)


@pytest.mark.parametrize("shape", [(3, 28, 27), (3, 42, 42), (1, 28, 28), (28, 28, 3), (1, 3, 28, 28), (28, 28)])
def test_pixels_of_another_shape_are_refused(folders: dict[str, Path], shape: tuple[int, ...]) -> None:
    model = small_models.open_model(folders["base"])
    with pytest.raises(ShapeError, match=r"needs \(3, 28, 28\)"):
        paligemma.encode_images(model, [np.zeros(shape, np.float32)])


@pytest.mark.parametrize("marks", [0, 3, 5, 8])
def test_another_number_of_image_tokens_is_refused(folders: dict[str, Path], marks: int) -> None:
    model = small_models.open_model(folders["base"])
    with pytest.raises(PromptError, match=f"has {marks} image tokens, the images give 4") as raised:
        paligemma.embed_prefix(model, np.zeros((4, 32), np.float32), [299] * marks + [2, 9])
    assert raised.value.exit_code == 4


def test_an_image_id_outside_the_vocabulary(folders: dict[str, Path]) -> None:
    """Its rows come from the images alone: the text embedding that is looked up there is never seen."""
    model = small_models.open_model(folders["image_id_outside_vocabulary"])
    assert model.config.image_token_id == model.config.text.vocab_size == 299
    inputs = small_models.make_inputs(CASES["image_id_outside_vocabulary"])
    out = logits(model, inputs)
    assert out.shape == (len(inputs.ids), 299)
    text = model.params.language_model
    changed = text.embed_tokens.copy()
    changed[0] ^= 0x8000  # nobody says token 0
    params = model.params._replace(language_model=text._replace(embed_tokens=changed))
    np.testing.assert_array_equal(logits(model._replace(params=params), inputs), out)


def test_patches_by_index(rng: np.random.Generator) -> None:
    """Pixel (c, y, x) lands in patch (y // 7) * 5 + x // 7, at place c * 49 + (y % 7) * 7 + x % 7."""
    image = rng.standard_normal((3, 21, 35))
    patches_IP = patchify(image, 7)
    assert patches_IP.shape == (15, 147)
    for c in range(3):
        for y in range(21):
            for x in range(35):
                assert patches_IP[y // 7 * 5 + x // 7, c * 49 + y % 7 * 7 + x % 7] == image[c, y, x]


def test_a_pixel_reaches_its_own_patch_alone(folders: dict[str, Path]) -> None:
    model = small_models.open_model(folders["base"])
    pixels = small_models.make_inputs(CASES["base"]).pixel_values[0]
    changed = pixels.copy()
    changed[1, 13, 14] += 1  # last row of the first patches, first column of the second
    rows = []
    for image in (pixels, changed):
        trace = Trace()
        paligemma.encode_images(model, [image], tap=trace)
        rows.append(trace.stages["vision/patch_embeddings"])
    different = np.abs(rows[0] - rows[1]).max(axis=1) > 0
    np.testing.assert_array_equal(different, [False, True, False, False])


# Traces.

VISION_LAYER = (
    "layer_norm1 query key value attention_weights attention_out out_proj attention_residual layer_norm2 gelu fc2 out"
)
TEXT_LAYER = (
    "input_layernorm value query key attention_weights attention_out o_proj post_attention_layernorm "
    "pre_feedforward_layernorm gated_gelu down_proj post_feedforward_layernorm out"
)


def test_a_trace_has_every_stage_in_order(folders: dict[str, Path]) -> None:
    model = small_models.open_model(folders["base"])
    stages = small_models.our_stages(model, small_models.make_inputs(CASES["base"]))
    assert list(stages) == [
        "pixel_values",
        "vision/patch_embeddings",
        *(f"vision/layer_{i:02d}/{stage}" for i in range(2) for stage in VISION_LAYER.split()),
        "vision/post_layernorm",
        "projector/out",
        "prefix/embeddings",
        *(f"text/layer_{i:02d}/{stage}" for i in range(4) for stage in TEXT_LAYER.split()),
        "text/final_norm",
        "logits_before_cap",
        "logits",
    ]


def test_listening_changes_no_number(folders: dict[str, Path]) -> None:
    model = small_models.open_model(folders["base"])
    inputs = small_models.make_inputs(CASES["base"])
    stages = small_models.our_stages(model, inputs)
    np.testing.assert_array_equal(stages["logits"], logits(model, inputs))
    np.testing.assert_array_equal(stages["text/layer_03/out"].shape, (len(inputs.ids), 32))


def test_a_trace_keeps_copies() -> None:
    trace = Trace()
    array = np.arange(3.0)
    assert trace("stage", array) is array
    array += 1
    np.testing.assert_array_equal(trace.stages["stage"], [0, 1, 2])


def test_a_trace_of_chosen_points() -> None:
    trace = Trace(lambda stage: stage.endswith("/out"))
    image = Prefixed(trace, "image_2/")
    for stage in ("vision/out", "vision/query"):
        assert image(stage, np.ones(2)).shape == (2,)
        assert image.wants(stage) == trace.wants(stage) == (stage == "vision/out")
    assert list(trace.stages) == ["image_2/vision/out"]


def test_no_tap_wants_nothing() -> None:
    array = np.ones(3)
    assert no_tap("stage", array) is array
    assert not no_tap.wants("stage")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stage", ["vision/layer_00/out", "projector/out", "text/layer_01/query", "logits_before_cap"])
def test_the_guard_stops_at_what_is_not_finite(number: float, stage: str) -> None:
    trace = Trace()
    guard = Guard(trace)
    good = np.ones(3, np.float32)
    assert guard(stage, good) is good
    with pytest.raises(NotFiniteError, match=f"{stage} holds NaN or infinity") as raised:
        guard(stage, np.array([1, number, 2], np.float32))
    assert raised.value.stage == stage
    assert raised.value.exit_code == 1
    assert list(trace.stages) == [stage]
    assert guard.wants(stage)


def test_the_guard_finds_a_weight_that_is_not_a_number(folders: dict[str, Path]) -> None:
    model = small_models.open_model(folders["base"])
    inputs = small_models.make_inputs(CASES["base"])
    text = model.params.language_model
    norm = text.layers[2].pre_feedforward_layernorm.copy()
    norm[5] = 0x7FC0
    layers = tuple(
        layer._replace(pre_feedforward_layernorm=norm) if index == 2 else layer
        for index, layer in enumerate(text.layers)
    )
    broken = model._replace(params=model.params._replace(language_model=text._replace(layers=layers)))
    embeddings = paligemma.encode_images(broken, list(inputs.pixel_values), tap=Guard())
    with pytest.raises(NotFiniteError) as raised:
        paligemma.forward(broken, embeddings, inputs.ids, inputs.prefix_length, tap=Guard())
    assert raised.value.stage == "text/layer_02/out"
