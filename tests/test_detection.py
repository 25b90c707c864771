"""Answers with `<loc>` and `<seg>`: every token of them is in an object or in a sentence that says why not."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pg2ref.outputs.detection import TOKEN, Detection, box_xyxy_px, parse

BOX = "<loc0100><loc0200><loc0300><loc0400>"
CODES = "".join(f"<seg{code:03d}>" for code in range(112, 128))
BINS = (100, 200, 300, 400)


def test_several_objects_in_any_script() -> None:
    labels = ["cat", "red  car", "кошка", "猫", "قطة", "naïve café", "a-b, c: d; e", "x<y"]
    text = " ; ".join(f"{BOX} {label}" for label in labels)
    detections, problems = parse(text)
    assert [one.label for one in detections] == labels
    assert {one.box_yxyx_bins for one in detections} == {BINS}
    assert [one.first_token for one in detections] == list(range(0, 32, 4))
    assert problems == ()


def test_masks() -> None:
    detections, problems = parse(f"{BOX}{CODES} cat ; {BOX} dog ; {BOX}{CODES}")
    assert problems == ()
    assert detections == (
        Detection("cat", BINS, tuple(range(112, 128)), 0),
        Detection("dog", BINS, (), 20),
        Detection("", BINS, tuple(range(112, 128)), 24),
    )


@pytest.mark.parametrize("text", ["", "none", "a cat and a dog", "1 < 2 ; 3", "a; b", "<b>bold</b>", "<unused1>"])
def test_plain_text_has_no_objects_and_no_problems(text: str) -> None:
    assert parse(text) == ((), ())


@pytest.mark.parametrize(
    ("text", "labels", "says"),
    [
        (f"{BOX} cat ; <loc0001><loc0002>", ["cat"], "4 locations, got 2: '<loc0001><loc0002>'"),
        (f"{BOX} cat ; {BOX[:-9]} dog", ["cat"], "got 3: '<loc0100><loc0200><loc0300> dog'"),
        (f"{BOX} cat ; <loc0001><lo", ["cat"], "<lo"),
        (f"{BOX} cat ; <loc00", ["cat"], "'<loc00'"),
        (f"{BOX}{CODES[:-8]} cat", ["cat"], "16 codes, got 15"),
        (f"{BOX}{CODES}<seg001> cat", [""], "got 0: '<seg001> cat'"),
        (f"{CODES} cat", [], "got 0"),
        ("<loc0100><loc0200><loc0100><loc0400> cat", [], "no extent"),
        ("<loc0100><loc0400><loc0300><loc0200> cat", [], "no extent"),
        (f"I see {BOX} cat", ["cat"], "words before the first box: 'I see'"),
        (f"{BOX} cat ; dog ; {BOX} cow", ["cat", "cow"], "words without a box: 'dog'"),
        ("<loc0100><loc0200><loc0300><loc1024> cat", [], "not a location or a code: '<loc1024>'"),
        (f"{BOX} cat <seg128>", ["cat"], "'<seg128>'"),
        ("<loc0100><loc0200><loc0300><loc12> cat", [], "'<loc12>'"),
        ("<loc\u0660\u0661\u0662\u0663><loc0200><loc0300><loc0400> cat", [], "got 3"),
    ],
)
def test_what_is_malformed_is_reported(text: str, labels: list[str], says: str) -> None:
    detections, problems = parse(text)
    assert [one.label for one in detections] == labels
    assert any(says in problem for problem in problems), problems


def test_boxes_without_labels_between_them() -> None:
    """As a model writes them that was trained on one thing an image."""
    detections, problems = parse(f"{BOX}{BOX} cat")
    assert [one.label for one in detections] == ["", "cat"]
    assert problems == ()


TOKENS = st.one_of(
    st.integers(0, 1023).map("<loc{:04d}>".format),
    st.integers(0, 127).map("<seg{:03d}>".format),
    st.sampled_from(
        [" ", " ; ", ";", "cat", "猫", "<loc", "<seg1", ">", "<", "\n", BOX, CODES, f"{BOX}{CODES} dog ; "]
    ),
)


@given(st.lists(TOKENS, max_size=30).map("".join))
@example(f"{BOX[:-9]};{CODES}")
def test_no_token_is_lost(text: str) -> None:
    detections, problems = parse(text)
    tokens = TOKEN.findall(text)
    used = sum(4 + len(one.codes) for one in detections)
    assert used <= len(tokens)
    assert used == len(tokens) or problems
    for one in detections:
        located = tokens[one.first_token : one.first_token + 4]
        assert located == [f"<loc{step:04d}>" for step in one.box_yxyx_bins]
        y0, x0, y1, x1 = one.box_yxyx_bins
        assert y0 < y1
        assert x0 < x1
        coded = tokens[one.first_token + 4 :][: len(one.codes)]
        assert coded == [f"<seg{code:03d}>" for code in one.codes]
        assert not TOKEN.search(one.label)
    assert all("\n" not in problem for problem in problems)


LABELS = st.text(st.characters(exclude_characters=";<>", exclude_categories=["Z", "C"]), min_size=1, max_size=8)
BOXES = st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(501, 1023), st.integers(501, 1023))


@given(
    st.lists(
        st.tuples(LABELS, BOXES, st.lists(st.integers(0, 127), min_size=16, max_size=16) | st.just([])), min_size=1
    )
)
def test_what_is_written_is_read(objects: list[tuple[str, tuple[int, int, int, int], list[int]]]) -> None:
    text = " ; ".join(
        "".join(f"<loc{step:04d}>" for step in box) + "".join(f"<seg{code:03d}>" for code in codes) + f" {label}"
        for label, box, codes in objects
    )
    detections, problems = parse(text)
    assert problems == ()
    assert [(one.label, one.box_yxyx_bins, list(one.codes)) for one in detections] == objects


@given(st.text(max_size=60))
def test_any_text_is_survived(text: str) -> None:
    detections, _ = parse(text)
    assert detections == () or re.search(r"<loc\d{4}>", text)


def test_long_nonsense_takes_no_long_time() -> None:
    for piece in ("<loc0001>", "<seg001>", "<loc0001> ", "<loc", " ; ", "< "):
        started = time.process_time()
        parse(piece * 20_000)
        assert time.process_time() - started < 10  # backtracking over all of it would take hours


def test_public_documentation_shows_the_same_boxes() -> None:
    """The example of supervision's `Detections.from_vlm` (0.31), which reads a location as /1024."""
    (cat,), problems = parse("<loc0256><loc0256><loc0768><loc0768> cat")
    assert problems == ()
    assert cat.label == "cat"
    assert box_xyxy_px(cat.box_yxyx_bins, (1000, 1000), 1024) == (250.0, 250.0, 750.0, 750.0)


def test_boxes_are_in_pixels_of_the_original() -> None:
    assert box_xyxy_px((0, 0, 1023, 1023), (640, 427), 1023) == (0, 0, 640, 427)
    assert box_xyxy_px((0, 0, 1023, 1023), (1024, 2048), 1024) == (0, 0, 1023, 2046)
    assert box_xyxy_px((341, 682, 1023, 1023), (300, 30), 1023) == pytest.approx((200, 10, 300, 30))
    with pytest.raises(ValueError, match="1023, 1024"):
        box_xyxy_px((0, 0, 1, 1), (1, 1), 1000)
