"""Overlays: boxes, masks and labels where they belong, and never outside the picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pg2ref.arrays import Array
from pg2ref.outputs import overlay
from pg2ref.outputs.objects import DetectedObject
from pg2ref.outputs.overlay import COLOURS, draw_overlay, label_colours, pixel_box


def one(
    box: tuple[float, float, float, float], label: str = "cat", score: float | None = 0.5, mask: Array | None = None
) -> DetectedObject:
    return DetectedObject(label, box, (0, 0, 1, 1), score, mask)


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def changed(drawn: Image.Image) -> Array:
    return (np.asarray(drawn) != 128).any(2)


def test_boxes_run_along_their_edges() -> None:
    drawn = np.asarray(draw_overlay(grey(300, 200), [one((50, 60, 150, 160), "", None)]))
    assert (np.flatnonzero(changed(Image.fromarray(drawn)).any(0))[[0, -1]] == [50, 149]).all()
    assert (np.flatnonzero(changed(Image.fromarray(drawn)).any(1))[[0, -1]] == [60, 159]).all()
    assert not changed(Image.fromarray(drawn))[70:150, 60:140].any()
    (colour,) = label_colours([""]).values()
    assert tuple(drawn[100, 51]) == colour
    assert tuple(drawn[100, 50]) == tuple(drawn[100, 52]) == overlay.EDGE


def test_the_picture_itself_stays_as_it_is() -> None:
    picture = grey(40, 30)
    draw_overlay(picture, [one((1, 1, 20, 20), mask=np.ones((30, 40), bool))])
    assert not changed(picture).any()


def test_masks_are_tinted_and_rimmed() -> None:
    mask = np.zeros((200, 300), bool)
    mask[80:120, 100:140] = True
    drawn = np.asarray(draw_overlay(grey(300, 200), [one((50, 40, 250, 160), "", None, mask)])).astype(int)
    (colour,) = label_colours([""]).values()
    assert (np.abs(drawn[100, 120] - (0.55 * 128 + 0.45 * np.array(colour))) < 1.01).all()
    assert (drawn[80, 120] == colour).all()
    assert (drawn[100, 139] == colour).all()
    assert (drawn[79, 120] == 128).all()


def test_labels_differ_in_colour_while_colours_last() -> None:
    labels = [f"thing {i}" for i in range(len(COLOURS))]
    assert len(set(label_colours(labels).values())) == len(COLOURS)
    assert label_colours(["cat", "dog", "cat"]) == label_colours(["cat", "dog"])
    assert len(label_colours([str(i) for i in range(30)])) == 30


def test_labels_can_be_read_on_any_ground(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ink and plate differ by what readers of small print need, 3 to 1 (WCAG 2.1, 1.4.3 for bold), in all colours."""

    def luminance(colour: tuple[int, ...]) -> float:
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in COLOURS:
        monkeypatch.setattr(overlay, "COLOURS", (colour,))
        drawn = np.asarray(draw_overlay(grey(300, 200), [one((50, 60, 150, 160), "MMMM", None)]))
        plate = drawn[40:60, 50:100].reshape(-1, 3)
        inks = {tuple(map(int, pixel)) for pixel in plate} & {(0, 0, 0), (255, 255, 255)}
        assert len(inks) == 1
        light, dark = sorted([luminance(colour), luminance(next(iter(inks)))], reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 3


def test_plates_keep_clear_of_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    plates = []
    original = overlay._label

    def record(*arguments: object) -> object:
        plates.append(original(*arguments))  # type: ignore[arg-type]
        return plates[-1]

    monkeypatch.setattr(overlay, "_label", record)
    draw_overlay(grey(600, 400), [one((200 + 3 * i, 200 + 4 * i, 300, 300)) for i in range(5)])
    assert len(plates) == 5
    assert not any(overlay._overlap(a, b) for i, a in enumerate(plates) for b in plates[:i])


@settings(deadline=None, max_examples=150)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=6),
    label=st.text(max_size=40) | st.just("x" * 3000) | st.just("猫 кошка\nقطة\t\x00\ud800"),
)
def test_anything_can_be_drawn(
    size: tuple[int, int], boxes: list[tuple[float, float, float, float]], label: str
) -> None:
    objects = []
    for x0, y0, x1, y1 in boxes:
        left, right = sorted([x0 * size[0], x1 * size[0]])
        top, bottom = sorted([y0 * size[1], y1 * size[1]])
        objects.append(one((left, top, right, bottom), label, 0.5, np.ones((size[1], size[0]), bool)))
        touched = pixel_box(objects[-1].box_xyxy_px, size)
        assert 0 <= touched[0] < touched[2] <= size[0]
        assert 0 <= touched[1] < touched[3] <= size[1]
    drawn = draw_overlay(grey(*size), objects)
    assert drawn.size == size
    assert drawn.mode == "RGB"


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (299, 199, 300, 200), (0, 0, 300, 200), (299.9, 10, 300, 10.1)])
def test_boxes_at_the_edges_and_of_one_pixel(box: tuple[float, float, float, float]) -> None:
    drawn = draw_overlay(grey(300, 200), [one(box, "", None)])
    x0, y0, x1, y1 = pixel_box(box, (300, 200))
    assert changed(drawn)[y0:y1, x0:x1].any()
    if (x1 - x0) * (y1 - y0) == 1:
        assert changed(drawn).sum() == 1
    labelled = draw_overlay(grey(300, 200), [one(box, "a label")])
    assert changed(labelled).sum() > changed(drawn).sum() + 200  # a whole plate, inside


def test_boxes_beyond_the_picture_are_cut() -> None:
    assert pixel_box((5.5, 5, 11, 12.5), (10, 9)) == (5, 5, 10, 9)
    assert pixel_box((20, 20, 30, 30), (10, 9)) == (9, 8, 10, 9)


def test_long_labels_end_in_dots_and_stay_inside() -> None:
    drawn = draw_overlay(grey(200, 100), [one((10, 50, 60, 90), "m" * 500, None)])
    assert changed(drawn)[:, [0, -1]].any()
    font = overlay._font(9)
    short = overlay._shortened("m" * 500, font, 100)
    assert short.endswith("…")
    assert 80 < font.getlength(short) <= 100
    assert overlay._shortened("m", font, 2) == ""
    assert overlay._shortened("cat", font, 100) == "cat"


@pytest.mark.parametrize("letter", ["é", "ß", "ж", "Ω", "☃"])
def test_letters_of_europe_are_drawn_and_others_are_boxes(letter: str) -> None:
    font = overlay._font(40)
    missing = np.asarray(font.getmask("\U0001f600")).tobytes()
    assert missing
    drawn = np.asarray(font.getmask(letter)).tobytes()
    assert any(drawn)
    assert (drawn == missing) == (letter == "☃")
