"""Videos as frames: which are taken, from what files, and that the model reads them as Transformers does."""

import builtins
import json
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import golden_records
import numpy as np
import pytest
import small_models
from cli_runner import Run
from closeness import assert_close
from PIL import Image
from small_models import CASES, MAX_NEW_TOKENS

import pg2ref
from pg2ref.errors import InputError, UsageError
from pg2ref.inputs.video import chosen_frames, read_frames

COUNT, SIZE = 40, (64, 48)
needs_av = pytest.mark.skipif(find_spec("av") is None, reason="needs the `video` extra")
SIXTEEN = CASES["base"]._replace(num_images=16, text={"sliding_window": 20})  # 64 image tokens


def pictures() -> list[Image.Image]:
    """Frame i is 6 * i red; the left half is green, the upper half blue."""
    found = []
    for i in range(COUNT):
        pixels_YXC = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        pixels_YXC[..., 0] = 6 * i
        pixels_YXC[:, : SIZE[0] // 2, 1] = 200
        pixels_YXC[: SIZE[1] // 2, :, 2] = 180
        found.append(Image.fromarray(pixels_YXC))
    return found


def write_clip(path: Path) -> Path:
    first, *others = pictures()
    if path.suffix == ".mp4":
        write_mp4(path)
    elif path.suffix:
        first.save(path, save_all=True, append_images=others, **({"lossless": True} if path.suffix == ".webp" else {}))
    else:
        path.mkdir()
        for i, picture in enumerate([first, *others]):
            picture.save(path / f"frame{i}.png")  # 10 before 2 by its letters
        (path / "notes.txt").write_text("no frame")
    return path


def write_mp4(path: Path) -> None:
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for picture in pictures():
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


CLIPS = ["clip.gif", "clip.webp", "clip.png", "clip", pytest.param("clip.mp4", marks=needs_av)]


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_spread_over_the_whole(name: str, tmp_path: Path) -> None:
    found = read_frames(write_clip(tmp_path / name), frames=4)
    assert [frame.index for frame in found] == [5, 15, 25, 35]
    tolerance = 12 if name == "clip.mp4" else 0  # lossy
    for frame in found:
        assert frame.picture.size == SIZE
        bottom_right = np.asarray(frame.picture)[40, 50].astype(int)
        assert np.abs(bottom_right - [6 * frame.index, 0, 0]).max() <= tolerance


@pytest.mark.parametrize("name", CLIPS)
def test_a_stride_starts_at_the_first(name: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / name)
    assert [frame.index for frame in read_frames(clip, frames=3, stride=9)] == [0, 9, 18]
    assert [frame.index for frame in read_frames(clip, frames=16, stride=9)] == [0, 9, 18, 27, 36]
    assert len(read_frames(clip, frames=100)) == COUNT


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 33, 1000, 12345])
def test_chosen_frames(count: int) -> None:
    chosen = chosen_frames(count, 16, None)
    assert len(chosen) == min(count, 16)
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < count
    assert abs(chosen[0] - (count - 1 - chosen[-1])) <= 1  # as far from the end as from the start
    assert chosen_frames(count, 3, 7) == [i for i in (0, 7, 14) if i < count]


@needs_av
def test_a_video_is_turned_as_its_header_says(tmp_path: Path) -> None:
    """The matrix of a phone held upright: a quarter turn with the clock."""
    stored = bytearray(write_clip(tmp_path / "clip.mp4").read_bytes())
    matrix = stored.index(b"tkhd") + 44  # ISO 14496-12, 8.3.2
    assert struct.unpack_from(">9i", stored, matrix) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", stored, matrix, 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(stored)
    (frame,) = read_frames(tmp_path / "turned.mp4", frames=1)
    assert frame.picture.size == SIZE[::-1]
    pixels_YXC = np.asarray(frame.picture)
    assert (pixels_YXC[5, 40, 1:] > 150).all()  # what was upper left
    assert (pixels_YXC[60, 5, 1:] < 50).all()


def test_a_still_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    pictures()[3].save(tmp_path / "still.png")
    (frame,) = read_frames(tmp_path / "still.png")
    assert (frame.index, frame.picture.getpixel((50, 40))) == (0, (18, 0, 0))


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    gif = write_clip(tmp_path / "cut.gif")
    gif.write_bytes(gif.read_bytes()[:200])
    with pytest.raises(InputError, match="no image file in it"):
        read_frames(tmp_path / "empty")
    with pytest.raises(InputError, match=r"cut.gif: expected a whole image"):
        read_frames(gif)
    for name in ("nowhere.mp4", "a\0b.mp4"):
        with pytest.raises(InputError, match="expected a video"):
            read_frames(tmp_path / name)
    for options in ({"frames": 0}, {"frames": 257}, {"stride": 0}):
        with pytest.raises(UsageError, match="expected 1"):
            read_frames(gif, **options)


@needs_av
def test_what_cannot_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    clip = write_clip(tmp_path / "clip.mp4")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:600])
    for name in ("text.mp4", "cut.mp4"):
        with pytest.raises(InputError, match=f"{name}: expected a video, got none that can be decoded"):
            read_frames(tmp_path / name)


def test_other_videos_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mkv").write_bytes(b"\x1aE\xdf\xa3" * 20)
    real: Callable[..., Any] = builtins.__import__

    def without_av(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(UsageError, match=r"pip install 'pg2ref\[video\]'"):
        read_frames(tmp_path / "clip.mkv")


def test_the_result_says_which_frames(run: Run, tmp_path: Path, small_folder: Path) -> None:
    clip = write_clip(tmp_path / "clip.gif")
    ran = run("generate", "--video", clip, "--frames", 3, "--stride", 10, "-m", small_folder, "-n", 4, "--json")
    assert (ran.code, ran.err) == (0, "")
    result = json.loads(ran.out)
    assert [image["frame"] for image in result["input"]["images"]] == [0, 10, 20]
    assert {(image["path"], *image["size"]) for image in result["input"]["images"]} == {(str(clip), *SIZE)}
    assert len({image["sha256"] for image in result["input"]["images"]}) == 1
    stills = [picture for i, picture in enumerate(pictures()) if i in (0, 10, 20)]
    same = pg2ref.load(small_folder).generate(stills, "caption en", max_new_tokens=4)
    assert [token["logprob"] for token in result["tokens"]] == list(same.logprobs)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("picture.png", "--video", "clip.gif"),
        ("picture.png", "--frames", 3),
        ("--video", "clip.gif", "--frames", 0),
    ],
)
def test_options_that_make_no_sense(
    run: Run, picture: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...]
) -> None:
    write_clip(picture.parent / "clip.gif")
    monkeypatch.chdir(picture.parent)
    ran = run("generate", *arguments, "-m", small_folder)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)


@pytest.mark.parity
def test_sixteen_frames_beyond_the_window_agree_at_every_stage(tmp_path: Path) -> None:
    """As 4,096 image tokens exceed a window of 4,096 with the first token of text: here 64, and a window of 20."""
    import transformers_stages

    small_models.write_folder(tmp_path, SIXTEEN)
    inputs = small_models.make_inputs(SIXTEEN)
    reference = transformers_stages.load_model(tmp_path)
    theirs = transformers_stages.record(reference, inputs.pixel_values, inputs.ids, inputs.prefix_length)
    truth = small_models.our_stages(small_models.open_model(tmp_path, np.float64), inputs)
    ours = small_models.our_stages(small_models.open_model(tmp_path), inputs)
    assert set(ours) == set(theirs)
    assert sum(stage.endswith("vision/post_layernorm") for stage in ours) == 16
    for stage, exact in truth.items():
        assert_close(ours[stage], exact, "stage/float32", terms=1)
        assert_close(theirs[stage].reshape(exact.shape), exact, "stage/transformers float32", terms=1)
    prompt = inputs.ids[: inputs.prompt_length]
    expected = transformers_stages.generate(reference, inputs.pixel_values, prompt, MAX_NEW_TOKENS)
    assert golden_records.answer(small_models.open_model(tmp_path), inputs, MAX_NEW_TOKENS) == expected


@pytest.mark.parity
def test_from_video_to_text(run: Run, tmp_path: Path, small_folder: Path) -> None:
    """Ids, pixels and answer of 16 frames: 256 image tokens and a window of 9."""
    import torch
    import transformers

    clip = write_clip(tmp_path / "clip.gif")
    frames = read_frames(clip)
    processor = transformers.AutoProcessor.from_pretrained(small_folder, use_fast=False)
    reference = transformers.PaliGemmaForConditionalGeneration.from_pretrained(small_folder, dtype=torch.float32).eval()
    images = [[frame.picture for frame in frames]]
    inputs = processor(images=images, text=["<image>" * 16 + "caption en"], return_tensors="pt")
    prepared = pg2ref.load(small_folder, precision="f32").prepare(frames, "caption en")
    assert prepared.prompt_ids == inputs["input_ids"][0].tolist()
    np.testing.assert_array_equal(np.stack(prepared.pixel_values), inputs["pixel_values"].numpy())
    output = reference.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    ran = run("generate", "--video", clip, "-m", small_folder, "-n", MAX_NEW_TOKENS, "--precision", "f32", "--json")
    answer = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert [token["id"] for token in json.loads(ran.out)["tokens"]] == answer


def test_a_video_without_frames_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` would take none for no --video, and answer about a scene that it draws."""
    (tmp_path / "empty.mp4").write_bytes(b"packets of nothing")
    monkeypatch.setattr("pg2ref.inputs.video._decode_video", lambda *_: iter(()))
    with pytest.raises(InputError, match=r"empty\.mp4: expected a video, got one without frames"):
        read_frames(tmp_path / "empty.mp4")


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="expected a folder of images, got: Permission denied; check path"):
        read_frames(tmp_path)
