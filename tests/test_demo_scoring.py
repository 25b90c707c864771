"""The rules by which the built-in model's answers are right or wrong, on answers made here."""

import numpy as np
import pytest
from scoring import Tally, match, overlap, same_objects

from pg2ref.demo.scene import Scene, draw_scene
from pg2ref.demo.tasks import caption
from pg2ref.outputs.objects import DetectedObject

SCENE = next(s for s in map(draw_scene, range(2000)) if [o.label for o in s.objects].count(s.objects[0].label) == 2)
LABEL = SCENE.objects[0].label
TRUE = [one for one in SCENE.objects if one.label == LABEL]


def given(scene: Scene, shift_px: int = 0, label: str = LABEL) -> list[DetectedObject]:
    return [
        DetectedObject(label, (x0 + shift_px, y0, x1 + shift_px, y1), (0, 0, 1, 1), None, one.mask_YX)
        for one in scene.objects
        if one.label == LABEL
        for x0, y0, x1, y1 in [one.box_xyxy_px]
    ]


def test_the_truth_is_right() -> None:
    found = match(SCENE, [LABEL], given(SCENE)[::-1])
    assert found == ((1.0, 1.0), 2, 2, (1.0, 1.0))


def test_what_is_missing_or_too_much_counts() -> None:
    assert match(SCENE, [LABEL], given(SCENE)[:1])[1:] == (2, 1, (1.0, 0.0))
    doubled = match(SCENE, [LABEL], given(SCENE) + given(SCENE))
    assert (len(doubled.matched_iou), doubled.given) == (2, 4)
    assert match(SCENE, [LABEL], given(SCENE, label="no such thing")) == ((), 2, 2, (0.0, 0.0))


def test_one_box_around_two_objects_is_one_match() -> None:
    whole = DetectedObject(LABEL, (0, 0, SCENE.size_px, SCENE.size_px), (0, 0, 1023, 1023), None, None)
    found = match(SCENE, [LABEL], [whole])
    assert (len(found.matched_iou), found.expected, found.given) == (1, 2, 1)


def test_a_box_beside_the_object_is_no_match() -> None:
    assert match(SCENE, [LABEL], given(SCENE, shift_px=SCENE.size_px)).matched_iou == ()


def test_overlap() -> None:
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0


def test_captions_may_name_objects_in_any_order() -> None:
    assert same_objects("a red star and two blue circles", "two blue circles and a red star", "en")
    assert not same_objects("a red star and a blue circle", "two blue circles and a red star", "en")
    assert not same_objects("a red star, a red star", "a red star", "en")
    assert same_objects("un cercle rouge, une étoile bleue et un cœur vert", "un cœur vert, un cercle rouge et "
                        "une étoile bleue", "fr")  # fmt: skip


@pytest.mark.parametrize("language", ["en", "de", "fr", "es"])
def test_captions_of_scenes_are_taken_apart_whole(language: str) -> None:
    for seed in range(40):
        scene = draw_scene(seed, 32)
        text = caption(scene, language).answer
        assert same_objects(text, text, language)
        assert not same_objects(text + "x", text, language)


def test_the_table_takes_the_mean() -> None:
    tally = Tally()
    tally.right["count"] += [True, False, True, True]
    tally.found["detect"] += [match(SCENE, [LABEL], given(SCENE)), match(SCENE, [LABEL], given(SCENE)[:1])]
    tally.found["segment"] += [match(SCENE, [LABEL], given(SCENE)[:1])]
    rows = tally.rows()
    assert rows["count"] == (0.75, 4)
    assert rows["detect: mean IoU of matched objects"] == (1.0, 3)
    assert rows["detect: recall at IoU 0.5"] == (0.75, 4)
    assert rows["detect: precision at IoU 0.5"] == (1.0, 3)
    assert rows["segment: mean IoU of the mask"] == (0.5, 2)
    assert np.isfinite([value for value, _ in rows.values()]).all()
