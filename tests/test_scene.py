"""Scenes: the same for a seed everywhere, at every size, and what they say of themselves is what the pixels show."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from oracles.naive_polygon import coverage

from pg2ref.demo.drawing.colours import COLOURS
from pg2ref.demo.drawing.dice import Dice
from pg2ref.demo.drawing.lettering import font, place_text, text_width
from pg2ref.demo.drawing.raster import FINE, FULL, SAMPLES, fill
from pg2ref.demo.drawing.shapes import SHAPES, SIDE, TURN, cosine, place
from pg2ref.demo.drawing.words import WORDS
from pg2ref.demo.scene import Scene, draw_scene
from pg2ref.demo.truth import truth_of
from pg2ref.errors import UsageError
from pg2ref.outputs.rle import decode_mask

# sha256 of pixels and truth; a scene that changes makes another world than the model was trained on
DIGESTS = {
    (0, 112): "f295a683ccb5ad59",
    (1, 112): "041b617c8f6c5896",
    (5, 112): "6647a17865d15c30",
    (12, 112): "312911f20bb6d7a6",
    (13, 224): "be95a1b6a406bce1",
    (7, 224): "98d206657e3fc03b",
    (2**64 - 1, 61): "3214da465651689b",
}
SOME = [draw_scene(seed, 112) for seed in range(200)]


def digest(scene: Scene) -> str:
    return hashlib.sha256(scene.pixels_YXC.tobytes() + json.dumps(truth_of(scene)).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("seed", "size_px"), DIGESTS)
def test_scenes_are_pinned(seed: int, size_px: int) -> None:
    assert digest(draw_scene(seed, size_px)) == DIGESTS[seed, size_px]


def test_seeds_differ() -> None:
    assert len({digest(scene) for scene in SOME}) == len(SOME)


def test_raw_numbers_are_philox() -> None:
    """First words of Philox-4x64-10 under the key 7, as NumPy's own documentation promises to keep them."""
    raw = np.random.Philox(key=7).random_raw(256).tolist()
    assert Dice(7).below(2**64) == raw[-1]
    dice = Dice(7)
    assert dice.bytes_(11).tobytes() == b"".join(word.to_bytes(8, "little") for word in raw[:2])[:11]


def test_dice_reach_both_ends() -> None:
    dice = Dice(0)
    assert Counter(dice.between(-1, 2) for _ in range(400)).keys() == {-1, 0, 1, 2}
    assert sorted(dice.shuffled("abcd")) == list("abcd")


def test_no_cosine_lies_near_a_half() -> None:
    exact = TURN * np.cos(np.radians(np.arange(360)))
    assert np.abs(np.abs(exact - np.floor(exact)) - 0.5).min() > 1e-6
    assert [cosine(degrees) for degrees in (0, 60, 90, 180, 270, 360)] == [TURN, TURN // 2, 0, -TURN, 0, TURN]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degrees", [0, 13])
def test_pixels_count_their_samples(shape: str, degrees: int) -> None:
    contours = place(shape, (SIDE // 2 + 37, SIDE // 3), SIDE // 4, degrees, 23)
    stamp = fill(contours, 23)
    drawn = np.zeros((23, 23), np.uint8)
    drawn[stamp.box] = stamp.coverage_YX
    assert (drawn == coverage([c.tolist() for c in contours], 23, SAMPLES, FINE)).all()
    assert drawn.max() == FULL


def test_figures_are_cut_at_the_edges() -> None:
    for centre in ((0, 0), (SIDE, SIDE // 2), (-SIDE, 0)):
        contours = place("ring", centre, SIDE // 5, 0, 23)
        stamp = fill(contours, 23)
        drawn = np.zeros((23, 23), np.uint8)
        drawn[stamp.box] = stamp.coverage_YX
        assert (drawn == coverage([c.tolist() for c in contours], 23, SAMPLES, FINE)).all()


@pytest.mark.parametrize("word", ["ICE", "0123456789", "BK8"])
def test_words_are_as_wide_as_they_say(word: str) -> None:
    height = SIDE // 20
    stamp = fill(place_text(word, (100, 200), height, 400), 400)
    width_px = stamp.coverage_YX.shape[1] / 400 * SIDE
    assert width_px <= text_width(word, height) * 1.02
    assert width_px > 0.8 * text_width(word, height)
    assert stamp.coverage_YX.shape[0] == pytest.approx(height / SIDE * 400, abs=3)


def test_every_word_can_be_written_and_fits() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert set("".join(WORDS)) <= set(font().advance)
    assert max(text_width(word, SIDE * 13 // 100) for word in WORDS) < SIDE * 9 // 10


@pytest.mark.parametrize("seed", [0, 3, 17, 26])
def test_size_only_scales(seed: int) -> None:
    small, large = draw_scene(seed, 112), draw_scene(seed, 448)
    assert [one.label for one in small.objects] == [one.label for one in large.objects]
    assert small.text == large.text
    for one, other in zip(small.objects, large.objects, strict=True):
        assert np.abs(np.array(one.box_xyxy_px) * 4 - other.box_xyxy_px).max() <= 6


def test_masks_show_their_colour_and_nothing_else() -> None:
    for scene in SOME:
        for one in scene.objects:
            seen = np.median(scene.pixels_YXC[one.mask_YX], axis=0)
            assert np.abs(seen - COLOURS[one.placed.colour]).max() <= 14
        assert sum(one.mask_YX.astype(int) for one in scene.objects).max() == 1  # type: ignore[union-attr]


def test_objects_are_all_there_and_can_be_seen() -> None:
    whole = 0
    for scene in SOME:
        assert 1 <= len(scene.objects) <= 4
        areas = [one.area_px for one in scene.objects]
        assert areas == sorted(areas, reverse=True)
        for one in scene.objects:
            stamp = fill(place(one.placed.shape, one.placed.centre, one.placed.radius, one.placed.degrees, 112), 112)
            share = one.area_px / np.count_nonzero(stamp.coverage_YX >= FULL // 2)
            assert share > 0.75
            whole += share == 1
    assert whole < sum(len(scene.objects) for scene in SOME)  # some do overlap


def test_scenes_hold_everything() -> None:
    objects = [one.placed for scene in SOME for one in scene.objects]
    assert {one.colour for one in objects} == set(COLOURS)
    assert {one.shape for one in objects} == set(SHAPES)
    assert {len(scene.objects) for scene in SOME} == {1, 2, 3, 4}
    assert 0.3 < sum(scene.text is not None for scene in SOME) / len(SOME) < 0.5
    most_alike = [max(Counter(one.label for one in scene.objects).values()) for scene in SOME]
    assert set(most_alike) == {1, 2, 3, 4}


def test_truth_is_what_is_documented() -> None:
    scene = draw_scene(12, 112)
    truth = json.loads(json.dumps(truth_of(scene)))
    assert set(truth) == {"size", "objects", "text"}
    assert truth["size"] == [112, 112]
    assert truth["text"] == scene.text
    for stored, one in zip(truth["objects"], scene.objects, strict=True):
        assert set(stored) == {"label", "box_xyxy", "mask"}
        mask_YX = decode_mask(stored["mask"])
        assert (mask_YX == one.mask_YX).all()
        x0, y0, x1, y1 = stored["box_xyxy"]
        assert mask_YX[y0:y1, x0:x1].sum() == mask_YX.sum() > 0
        edges = mask_YX[y0, x0:x1], mask_YX[y1 - 1, x0:x1], mask_YX[y0:y1, x0], mask_YX[y0:y1, x1 - 1]
        assert all(edge.any() for edge in edges)
        assert stored["label"] == one.label


@pytest.mark.parametrize(("seed", "size_px"), [(-1, 224), (2**64, 224), (0, 31), (0, 4097)])
def test_impossible_scenes_are_refused(seed: int, size_px: int) -> None:
    with pytest.raises(UsageError, match="expected"):
        draw_scene(seed, size_px)
