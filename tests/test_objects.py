"""Objects of an answer: boxes, scores and masks in the original picture, and how supervision takes them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.naive_paste import paste as naive_paste
from PIL import Image
from random_mask_decoder import random_arrays

from pg2ref.arrays import Array
from pg2ref.checkpoint.vae_npz import read_mask_decoder
from pg2ref.model.vqvae import MaskDecoder, decode_codes
from pg2ref.outputs.objects import NO_DECODER, DetectedObject, find_objects
from pg2ref.outputs.rle import decode_mask
from pg2ref.outputs.segmentation import paste

PIECES = ["<loc0100>", "<loc0200>", "<loc0500>", "<loc0900>", *(f"<seg{code:03d}>" for code in range(16)), "▁cat"]
TEXT = "".join(PIECES).replace("▁", " ")
SIZE = (640, 427)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> MaskDecoder:
    path = tmp_path_factory.mktemp("vae") / "vae.npz"
    np.savez(path, **random_arrays(6, 5, 7, (6, 5, 3, 2)))
    return read_mask_decoder(path)


def test_score_is_the_geometric_mean_of_the_locations() -> None:
    logprobs = [-0.1, -0.2, -0.3, -0.4] + [-5.0] * 17
    (one,), problems = find_objects(TEXT, list(zip(PIECES, logprobs, strict=True)), SIZE, 1023, None)
    assert one.score == pytest.approx(math.exp(-0.25))
    assert problems == (NO_DECODER,)
    assert one.mask_YX is None


def test_each_object_has_its_own_score() -> None:
    text = "<loc0001><loc0001><loc0009><loc0009> a ; <loc0001> x ; <loc0002><loc0002><loc0009><loc0009> b"
    pieces = ["<loc0001>"] * 2 + ["<loc0009>"] * 2 + [" a ; ", "<loc0001>", " x ; "]
    pieces += ["<loc0002>"] * 2 + ["<loc0009>"] * 2 + [" b"]
    logprobs = [0.0] * 4 + [-9.0] * 3 + [-1.0] * 4 + [-9.0]
    objects, problems = find_objects(text, list(zip(pieces, logprobs, strict=True)), SIZE, 1023, None)
    assert [(one.label, one.score) for one in objects] == [("a", 1.0), ("b", pytest.approx(math.exp(-1)))]
    assert len(problems) == 1


def test_without_log_probabilities_there_is_no_score() -> None:
    (one,), _ = find_objects(TEXT, [], SIZE, 1023, None)
    assert one.score is None
    spelled_out = [(character, -1.0) for character in TEXT]
    assert find_objects(TEXT, spelled_out, SIZE, 1023, None)[0][0].score is None


def test_masks_lie_in_their_boxes(decoder: MaskDecoder) -> None:
    (one,), problems = find_objects(TEXT, [], SIZE, 1023, decoder)
    assert problems == ()
    assert one.mask_YX is not None
    assert one.mask_YX.shape == (427, 640)
    assert one.mask_YX.any()
    x0, y0, x1, y1 = (int(edge) for edge in one.box_xyxy_px)
    assert one.mask_YX[y0:y1, x0:x1].sum() == one.mask_YX.sum()
    expected = naive_paste(decode_codes(decoder, np.arange(16)), 100, 200, 500, 900, 640, 427)
    assert (one.mask_YX == expected).all()
    stored = one.to_dict()
    assert set(stored) == {"label", "box_xyxy", "box_loc_yxyx", "score", "mask"}
    assert (decode_mask(stored["mask"]) == one.mask_YX).all()
    assert stored["box_loc_yxyx"] == [100, 200, 500, 900]


def test_loc_scale_reaches_box_and_mask(decoder: MaskDecoder) -> None:
    boxes = [find_objects(TEXT, [], (1024, 1024), scale, decoder)[0][0].box_xyxy_px for scale in (1023, 1024)]
    assert boxes[1] == (200, 100, 900, 500)
    assert boxes[0] > boxes[1]


@given(
    st.lists(st.integers(0, 1023), min_size=4, max_size=4),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_pasting_is_that_of_the_evaluator(bins: list[int], width: int, height: int) -> None:
    y0, y1 = sorted(bins[:2])
    x0, x1 = sorted(bins[2:])
    mask = np.random.default_rng(y0).normal(size=(64, 64)).astype(np.float32)
    box = tuple(step / 1023 * side for step, side in zip((x0, y0, x1, y1), (width, height) * 2, strict=True))
    assert (paste(mask, box, (width, height)) == naive_paste(mask, y0, x0, y1, x1, width, height)).all()


def test_a_box_below_a_pixel_has_an_empty_mask() -> None:
    assert not paste(np.ones((64, 64)), (3.2, 3.2, 3.8, 9.0), (10, 10)).any()
    assert paste(np.ones((64, 64)), (3.2, 3.2, 4.1, 4.1), (10, 10)).sum() == 1


def objects(mask: Array | None) -> list[DetectedObject]:
    return [
        DetectedObject("dog", (1.0, 2.0, 3.0, 4.0), (1, 2, 3, 4), 0.5, mask),
        DetectedObject("cat", (0.0, 0.0, 9.0, 9.0), (1, 2, 3, 4), None, mask),
        DetectedObject("dog", (0.0, 0.0, 9.0, 9.0), (1, 2, 3, 4), 0.25, mask),
    ]


@pytest.mark.filterwarnings("ignore")  # supervision's own
def test_supervision_takes_them() -> None:
    pytest.importorskip("supervision")
    from pg2ref.outputs.supervision_detections import detections

    mask = np.zeros((9, 9), bool)
    mask[2:4, 1:3] = True
    taken = detections(objects(mask))
    assert taken.xyxy.tolist()[0] == [1, 2, 3, 4]
    assert taken.confidence.tolist() == [0.5, 1.0, 0.25]
    assert taken.class_id.tolist() == [0, 1, 0]
    assert taken.data["class_name"].tolist() == ["dog", "cat", "dog"]
    assert np.asarray(taken.mask).shape == (3, 9, 9)
    assert detections(objects(None)).mask is None
    assert len(detections([])) == 0


def test_stretching_is_bilinear_with_pixel_centres() -> None:
    """What Pillow does to a 64 x 64 float mask at twice its size, at one place by hand: 3/4 of one, 1/4 of the next."""
    mask = np.zeros((64, 64), np.float32)
    mask[10, 10], mask[10, 11] = 1.0, -2.0
    stretched = np.asarray(Image.fromarray(mask).resize((128, 128), Image.Resampling.BILINEAR))
    assert stretched[20, 21] == pytest.approx(0.75 * (0.75 * 1.0 + 0.25 * -2.0))
