"""Tasks: prompts in PaliGemma's syntax, answers that are true of the scene, grammar in four languages."""

import re

import numpy as np
import pytest

from pg2ref.demo.drawing.colours import COLOURS
from pg2ref.demo.drawing.dice import Dice
from pg2ref.demo.drawing.shapes import SHAPES
from pg2ref.demo.languages import LANGUAGES, say
from pg2ref.demo.scene import Scene, draw_scene
from pg2ref.demo.tasks import (
    caption,
    colour_questions,
    count,
    detect,
    draw_tasks,
    locations,
    ocr,
    segment,
    shape_questions,
)

SCENES = [draw_scene(seed, 112) for seed in range(300)]


def scene_with(*labels: str) -> Scene:
    """The first scene whose labels are these, in this order."""
    wanted = list(labels)
    return next(s for s in (draw_scene(seed, 32) for seed in range(20000)) if [o.label for o in s.objects] == wanted)


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "an orange star, two red circles and three white crosses"),
        ("de", "ein orangefarbener Stern, zwei rote Kreise und drei weiße Kreuze"),
        ("fr", "une étoile orange, deux cercles rouges et trois croix blanches"),
        ("es", "una estrella naranja, dos círculos rojos y tres cruces blancas"),
    ],
)
def test_grammar(language: str, expected: str) -> None:
    counted = [(1, "orange", "star"), (2, "red", "circle"), (3, "white", "cross")]
    assert say(language, counted) == expected
    assert say(language, counted[:1]) == expected.split(",")[0]


@pytest.mark.parametrize(
    ("language", "kind", "expected"),
    [
        ("de", (1, "yellow", "diamond"), "eine gelbe Raute"),
        ("de", (1, "purple", "heart"), "ein violettes Herz"),
        ("de", (1, "black", "ring"), "ein schwarzer Ring"),
        ("de", (4, "green", "triangle"), "vier grüne Dreiecke"),
        ("fr", (1, "purple", "cross"), "une croix violette"),
        ("fr", (4, "orange", "heart"), "quatre cœurs orange"),
        ("fr", (2, "green", "ring"), "deux anneaux verts"),
        ("es", (1, "red", "cross"), "una cruz roja"),
        ("es", (3, "blue", "heart"), "tres corazones azules"),
        ("es", (1, "purple", "diamond"), "un rombo morado"),
    ],
)
def test_gender_and_number(language: str, kind: tuple[int, str, str], expected: str) -> None:
    assert say(language, [kind]) == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_has_words_of_its_own(language: str) -> None:
    said = {say(language, [(n, colour, shape)]) for n in (1, 2, 3, 4) for colour in COLOURS for shape in SHAPES}
    assert len(said) == 4 * len(COLOURS) * len(SHAPES)


def test_captions_count_equal_objects_together() -> None:
    repeated = next(s for s in SCENES if len(s.objects) == 4 and len({o.label for o in s.objects}) == 2)
    text = caption(repeated, "en").answer
    first, second = text.split(" and ")
    assert repeated.objects[0].placed.colour in first
    assert {"a", "an", "two", "three"} >= {first.split()[0], second.split()[0]}
    assert caption(repeated, "de").prompt == "caption de"


def test_counts_are_true() -> None:
    for scene in SCENES[:50]:
        one = scene.objects[0].placed
        same = sum(o.label == scene.objects[0].label for o in scene.objects)
        assert count(scene, one.colour, one.shape).answer == str(same)
        assert count(scene, None, None).answer == str(len(scene.objects))
        assert count(scene, None, None).prompt == "answer en how many objects?"
        absent = next(c for c in COLOURS if all(o.placed.colour != c for o in scene.objects))
        assert count(scene, absent, "cross")[1:] == (f"answer en how many {absent} crosses?", "0")


def test_questions_have_one_answer() -> None:
    for scene in SCENES[:50]:
        for task in colour_questions(scene):
            shape = re.fullmatch(r"answer en what colou?r is the (\w+)\?", task.prompt)
            assert shape is not None
            assert [o.placed.colour for o in scene.objects if o.placed.shape == shape[1]] == [task.answer]
        for task in shape_questions(scene):
            colour = re.fullmatch(r"answer en what shape is the (\w+) object\?", task.prompt)
            assert colour is not None
            assert [o.placed.shape for o in scene.objects if o.placed.colour == colour[1]] == [task.answer]


def test_text_is_read_or_said_to_be_missing() -> None:
    assert {ocr(scene).answer for scene in SCENES if scene.text is None} == {"none"}
    assert all(ocr(scene).answer == scene.text for scene in SCENES if scene.text)


def test_detection_lists_labels_as_asked_and_large_objects_first() -> None:
    scene = next(s for s in SCENES if len(s.objects) == 3 and len({o.label for o in s.objects}) == 2)
    labels = list(reversed(dict.fromkeys(o.label for o in scene.objects)))
    task = detect(scene, [labels[0], "no such", labels[1]])
    assert task.prompt == f"detect {labels[0]} ; no such ; {labels[1]}"
    pieces = task.answer.split(" ; ")
    assert [piece.split(" ", 1)[1] for piece in pieces] == sorted((o.label for o in scene.objects), key=labels.index)
    assert pieces[0].startswith(
        locations(next(o.box_xyxy_px for o in scene.objects if o.label == labels[0]), scene.size_px)
    )
    assert detect(scene, ["no such"]).answer == "none"


def test_locations_are_rounded_bins_y_first() -> None:
    assert locations((0, 112, 56, 112), 112) == "<loc1023><loc0000><loc1023><loc0512>"
    assert locations((1, 2, 3, 4), 1023) == "<loc0002><loc0001><loc0004><loc0003>"


def test_segmentation_encodes_the_box_of_the_mask() -> None:
    scene = next(s for s in SCENES if len({o.label for o in s.objects}) == len(s.objects) == 2)
    seen = []

    def encode(mask_YX: np.ndarray) -> list[int]:
        seen.append(mask_YX)
        return list(range(16))

    one = scene.objects[1]
    answer = segment(scene, [one.label], encode).answer
    codes = "".join(f"<seg{code:03d}>" for code in range(16))
    assert answer == f"{locations(one.box_xyxy_px, 112)}{codes} {one.label}"
    assert len(seen) == 1
    assert seen[0].sum() == one.area_px


def test_a_seed_asks_the_same_and_nothing_is_left_unanswered() -> None:
    drawn = [draw_tasks(scene, Dice(seed, 2), lambda mask: [7] * 16) for seed, scene in enumerate(SCENES)]
    again = draw_tasks(SCENES[5], Dice(5, 2), lambda mask: [7] * 16)
    assert drawn[5] == again
    tasks = [task for of_scene in drawn for task in of_scene]
    assert all(task.prompt and task.answer for task in tasks)
    kinds = {task.kind for task in tasks}
    assert kinds == {"count", "ocr", "detect", "segment", "colour", "shape"} | {f"caption {one}" for one in LANGUAGES}
    counts = [task.answer for task in tasks if task.kind == "count"]
    assert set(counts) == {"0", "1", "2", "3", "4"}
    assert 0.05 < sum(t.answer == "none" for t in tasks if t.kind == "detect") / len(SCENES) < 0.35
