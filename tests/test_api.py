"""`import pg2ref`: loading, answering, streaming and tracing as a Python program does."""

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import write_picture
from PIL import Image

import pg2ref
from pg2ref.answer import StreamEvent
from pg2ref.errors import CheckpointError, InputError, ModelNotAvailableError, Pg2RefError, UsageError
from pg2ref.generation.generate import TokenEvent

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def model(small_folder: Path) -> pg2ref.Model:
    return pg2ref.load(small_folder)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_picture(tmp_path_factory.mktemp("pictures") / "picture.png")


def test_import_is_light() -> None:
    script = "import sys, pg2ref; print(sorted({'numpy', 'numba', 'PIL', 'sentencepiece'} & set(sys.modules)))"
    script += "\nprint(pg2ref.errors.UsageError.exit_code, pg2ref.load.__module__, 'numpy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("[]\n2 pg2ref.api True\n", "")


def test_public_names() -> None:
    assert pg2ref.__all__ == ["Model", "Result", "errors", "load"]
    assert all(getattr(pg2ref, name) for name in pg2ref.__all__)
    with pytest.raises(AttributeError, match="no attribute 'generate'"):
        _ = pg2ref.generate  # type: ignore[attr-defined]


def test_generate(model: pg2ref.Model, picture: Path) -> None:
    result = model.generate(picture, "caption en", max_new_tokens=6, logprobs=2)
    assert isinstance(result, pg2ref.Result)
    assert len(result.tokens) == len(result.token_ids) == len(result.logprobs) == 6
    assert result.text == model.tokenizer.detokenize(result.token_ids)
    assert result.prompt_ids == (2352,) * 16 + (2, *model.tokenizer.tokenize("caption en"), 108)
    assert (result.num_image_tokens, result.finish_reason, result.warnings) == (16, "length", ())
    assert result.images[0].size == (60, 40)
    assert [len(token.top) for token in result.tokens] == [2] * 6


def test_generating_twice_gives_the_same(model: pg2ref.Model, picture: Path) -> None:
    for options in ({}, {"temperature": 2.0, "seed": 5}):
        first, second = (model.generate(picture, "caption en", max_new_tokens=5, **options) for _ in range(2))
        assert first.tokens == second.tokens


def test_stream(model: pg2ref.Model, picture: Path) -> None:
    answer = model.stream(picture, "caption en", max_new_tokens=20)
    events = list(answer)
    result = answer.result()
    assert all(isinstance(event, StreamEvent) and isinstance(event.token, TokenEvent) for event in events)
    assert "".join(event.text for event in events) == result.text == answer.text
    assert tuple(event.token.token_id for event in events) == result.token_ids
    assert [event.token.finish_reason for event in events] == [None] * 19 + ["length"]
    assert result.tokens == model.generate(picture, "caption en", max_new_tokens=20).tokens


def test_stream_is_lazy(model: pg2ref.Model, picture: Path) -> None:
    answer = model.stream(picture, "caption en", max_new_tokens=8000)
    assert answer.result().tokens == ()
    for _ in answer:
        break
    assert len(answer.result().tokens) == 1


class Clock:
    """A tap that notes when the decoder begins, and makes it last."""

    began = 0.0

    def __call__(self, stage: str, array: Array) -> Array:
        self.began = time.perf_counter() if stage == "prefix/embeddings" else self.began
        time.sleep(0.05 if stage == "logits" else 0)
        return array

    def wants(self, stage: str) -> bool:
        return False


@pytest.mark.parametrize("beams", [1, 2])
def test_times_are_of_their_own_phase(model: pg2ref.Model, picture: Path, beams: int) -> None:
    clock, started = Clock(), time.perf_counter()
    timing = model.generate(picture, "caption en", max_new_tokens=2, beams=beams, tap=clock).timing
    assert 0 < timing.vision_s < clock.began - started
    assert timing.prefill_s >= 0.05


def as_file(path: Path) -> io.BytesIO:
    return io.BytesIO(path.read_bytes())


@pytest.mark.parametrize("form", [str, Path, as_file, Image.open, lambda path: np.asarray(Image.open(path))])
def test_an_image_in_every_form(model: pg2ref.Model, picture: Path, form: Any) -> None:
    expected = model.generate(picture, "caption en", max_new_tokens=2)
    source = form(picture)
    result = model.generate(source, "caption en", max_new_tokens=2)
    assert result.tokens == expected.tokens
    assert result.images[0].size == (60, 40)
    assert (result.images[0].path is None) == (not isinstance(source, (str, Path)))
    if isinstance(source, Image.Image):
        source.close()


def test_lists_of_images(model: pg2ref.Model, picture: Path) -> None:
    pixels = np.asarray(Image.open(picture))
    result = model.generate([picture, pixels[::-1], as_file(picture)], "same?", max_new_tokens=1)
    assert [image.path for image in result.images] == [str(picture), None, None]
    assert result.num_image_tokens == 48
    same = model.generate((picture, picture, picture), "same?", max_new_tokens=1)
    assert same.prompt_ids == result.prompt_ids
    assert same.logprobs != result.logprobs
    assert (
        model.generate([picture], "x", max_new_tokens=1).tokens == model.generate(picture, "x", max_new_tokens=1).tokens
    )


def test_a_pipe_is_read_once(model: pg2ref.Model, picture: Path) -> None:
    """What `pg2ref generate <(curl ...)` hands over: a path that can be opened, and read, only once."""
    reading, writing = os.pipe()

    def feed() -> None:
        with open(writing, "wb") as stream:
            stream.write(picture.read_bytes())

    feeder = threading.Thread(target=feed)
    feeder.start()
    result = model.generate(f"/dev/fd/{reading}", "caption en", max_new_tokens=1)
    feeder.join()
    os.close(reading)
    assert result.tokens == model.generate(picture, "caption en", max_new_tokens=1).tokens
    assert (result.images[0].path, result.images[0].sha256) == (f"/dev/fd/{reading}", None)


@pytest.mark.parametrize("images", [[], ()])
def test_no_image(model: pg2ref.Model, images: Any) -> None:
    with pytest.raises(InputError, match="the model needs an image") as caught:
        model.generate(images, "caption en")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "image",
    [
        None,
        7,
        b"bytes",
        "nowhere.png",
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_image(model: pg2ref.Model, image: Any) -> None:
    with pytest.raises(InputError, match="expected"):
        model.generate(image, "caption en")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected 1 to 8192"),
        ({"max_new_tokens": 9000}, "max_new_tokens is 9000, expected 1 to 8192"),
        ({"beams": 0}, "beams is 0, expected 1 to 64"),
        ({"beams": 2, "temperature": 1.0}, "beam search draws nothing"),
        ({"beams": 2, "use_cache": False}, "beam search draws nothing"),
        ({"temperature": -0.5}, r"temperature is -0.5, expected 0 \(greedy\) or more"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 3}, "give a temperature above 0"),
        ({"top_p": 0.5}, "give a temperature above 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top-p is 0.0, expected more than 0"),
        ({"seed": -3, "temperature": 1.0}, "seed is -3, expected 0 or more"),
        ({"logprobs": -1}, "logprobs is -1, expected 0 or more"),
    ],
)
def test_options_that_make_no_sense(model: pg2ref.Model, picture: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.stream(picture, "caption en", **options)  # at once, not at the first token


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "f16"}, "precision 'f16' is not one of f32, bf16, f64"),
        ({"backend": "torch"}, "backend.*'torch'"),
        ({"preset": "mlx"}, "preset 'mlx' is not one of transformers, big_vision, keras, gemma_cpp"),
        ({"resize": "lanczos"}, "resize 'lanczos' is not one of bicubic"),
        ({"window": "none"}, "window 'none' is not one of transformers"),
        ({"loc_scale": 1000}, "loc_scale 1000 is not one of 1023, 1024"),
    ],
)
def test_choices_that_do_not_exist(small_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pg2ref.load(small_folder, **options)


def test_load_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotAvailableError, match="pg2ref download org/name"):
        pg2ref.load("org/name")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        pg2ref.load(tmp_path)
    with pytest.raises(Pg2RefError):
        pg2ref.load("")


def test_json_round_trip(model: pg2ref.Model, picture: Path) -> None:
    result = model.generate(picture, "légende fr", max_new_tokens=4, logprobs=2)
    text = result.to_json()
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text) == json.loads(json.dumps(result.to_dict()))
    parsed = json.loads(text)
    assert parsed["input"]["prompt"] == "légende fr"
    assert parsed["text"] == result.text
    assert tuple(token["logprob"] for token in parsed["tokens"]) == result.logprobs
    assert tuple(parsed["input"]["ids"]) == result.prompt_ids


def test_trace_has_the_documented_stages(model: pg2ref.Model, picture: Path) -> None:
    stages = model.trace(picture, "caption en").stages
    names = list(stages)
    assert names[:2] == ["pixel_values", "vision/patch_embeddings"]
    assert names[-3:] == ["text/final_norm", "logits_before_cap", "logits"]
    order = "vision/layer_02/out vision/post_layernorm projector/out prefix/embeddings text/layer_03/out".split()
    assert [names.index(name) for name in order] == sorted(names.index(name) for name in order)
    assert stages["pixel_values"].shape == (3, 56, 56)
    assert stages["text/layer_00/attention_weights"].shape == (6, 20, 20)
    assert stages["logits"].shape == (1, 2432)
    best = int(stages["logits"][0].argmax())
    assert model.generate(picture, "caption en", max_new_tokens=1).token_ids == (best,)


def test_trace_of_two_images_and_of_some_stages(model: pg2ref.Model, picture: Path) -> None:
    stages = model.trace([picture, picture], "same?", points=lambda stage: stage.endswith("projector/out")).stages
    assert list(stages) == ["projector/out", "image_1/projector/out"]
    np.testing.assert_array_equal(stages["projector/out"], stages["image_1/projector/out"])


def test_f64(small_folder: Path, picture: Path) -> None:
    double = pg2ref.load(small_folder, precision="f64").trace(picture, "caption en").stages
    single = pg2ref.load(small_folder, precision="f32").trace(picture, "caption en").stages
    assert {array.dtype for array in single.values()} == {np.dtype(np.float32)}
    assert {name: array.dtype for name, array in double.items() if array.dtype != np.float64} in (
        {},
        {"pixel_values": np.dtype(np.float32)},
    )
    assert 0 < np.abs(double["logits"] - single["logits"]).max() < 1e-4


def test_models_share_nothing_that_changes(small_folder: Path, picture: Path) -> None:
    one, other = pg2ref.load(small_folder), pg2ref.load(small_folder, preset="keras")
    assert one.tokenizer is not other.tokenizer
    assert one.described is not other.described
    for tensor in one.checkpoint.tensors.values():
        assert not tensor.flags.writeable
    before = one.generate(picture, "caption en", max_new_tokens=3).tokens
    assert other.generate(picture, "caption en", max_new_tokens=3).tokens != before
    other.described["id"] = "changed"
    del other
    result = one.generate(picture, "caption en", max_new_tokens=3)
    assert result.tokens == before
    assert result.model["id"] == str(small_folder)


def test_answers_at_the_same_time(model: pg2ref.Model, picture: Path) -> None:
    """Two answers taken in turns do not touch each other: each has a cache of its own."""
    alone = [model.generate(picture, prompt, max_new_tokens=6).token_ids for prompt in ("caption en", "ocr")]
    answers = [model.stream(picture, prompt, max_new_tokens=6) for prompt in ("caption en", "ocr")]
    for _ in zip(*answers, strict=True):
        pass
    assert [answer.result().token_ids for answer in answers] == alone


def test_a_folder_that_cannot_be_written(small_folder: Path, tmp_path: Path, picture: Path) -> None:
    folder = shutil.copytree(small_folder, tmp_path / "fixed")
    for path in folder.iterdir():
        path.chmod(stat.S_IRUSR)
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    result = pg2ref.load(folder).generate(picture, "caption en", max_new_tokens=2)
    assert len(result.tokens) == 2
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    folder.chmod(stat.S_IRWXU)


def test_numbers_that_overflow_although_all_weights_are_finite(
    small_folder: Path, tmp_path: Path, picture: Path
) -> None:
    """bf16 reaches as far as float32 does: two large weights are enough."""
    folder = shutil.copytree(small_folder, tmp_path / "large")
    path = folder / "model.safetensors"
    stored = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(stored[:8], "little")
    entry = json.loads(stored[8:end])["multi_modal_projector.linear.weight"]
    begin, stop = (end + offset for offset in entry["data_offsets"])
    stored[begin:stop] = b"\x7f\x7f" * ((stop - begin) // 2)
    path.write_bytes(stored)
    with pytest.raises(Pg2RefError, match=r"projector/out .* every weight is finite.* f64") as caught:
        pg2ref.load(folder).generate(picture, "caption en", max_new_tokens=1)
    assert caught.value.exit_code == 1
    assert pg2ref.load(folder, precision="f64").generate(picture, "caption en", max_new_tokens=1).tokens
