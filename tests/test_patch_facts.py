"""What each patch of a scene should tell: owners, anchors, letters."""

import numpy as np
import pytest
from patch_facts import GRID, LETTERS, SLOTS, PatchFacts, patch_facts, spell

from pg2ref.demo.drawing.words import LARGEST_NUMBER, WORDS
from pg2ref.demo.scene import Scene, draw_scene

TWO_MIDDLES_IN_A_PATCH = (921, 1196, 4010)  # seeds
SCENES = [draw_scene(seed, 112) for seed in (*range(120), *TWO_MIDDLES_IN_A_PATCH)]


def facts_of(scenes: list[Scene]) -> list[tuple[Scene, PatchFacts]]:
    return [(scene, patch_facts(scene)) for scene in scenes]


def test_every_object_has_one_anchor_of_its_own() -> None:
    for scene, facts in facts_of(SCENES):
        owners = facts.owner_P[facts.anchor_P]
        assert sorted(owners) == list(range(len(scene.objects)))


def test_an_anchor_holds_the_middle_of_a_box_that_is_alone_there() -> None:
    for scene, facts in facts_of([scene for scene in SCENES if len(scene.objects) == 1]):
        x0, y0, x1, y1 = scene.objects[0].box_xyxy_px
        patch = int((y0 + y1) / 2 // 14) * GRID + int((x0 + x1) / 2 // 14)
        assert np.flatnonzero(facts.anchor_P).tolist() == [patch]


def test_owners_cover_their_patches_most() -> None:
    for scene, facts in facts_of(SCENES[:40]):
        for patch in np.flatnonzero((facts.owner_P >= 0) & ~facts.anchor_P):
            y, x = divmod(int(patch), GRID)
            window = np.s_[14 * y : 14 * y + 14, 14 * x : 14 * x + 14]
            covered = [int(np.count_nonzero(one.mask_YX[window])) for one in scene.objects]
            assert covered[facts.owner_P[patch]] == max(covered) > 0


def test_the_coarse_mask_is_the_objects() -> None:
    for scene, facts in facts_of(SCENES[:40]):
        inside_YX = facts.inside_PC.reshape(GRID, GRID, 7, 7).swapaxes(1, 2).reshape(56, 56)
        fine_YX = np.any([one.mask_YX for one in scene.objects], axis=0)
        assert np.mean(inside_YX.repeat(2, 0).repeat(2, 1) == fine_YX) > 0.97


def test_letters_of_a_line_are_read_from_left_to_right() -> None:
    seen = 0
    for scene, facts in facts_of(SCENES):
        rows = facts.letters_PL.reshape(GRID, 2 * GRID)
        if scene.text is None:
            assert not rows.any()
            continue
        seen += 1
        for row in rows[rows.any(1)]:
            letters = "".join(LETTERS[number - 1] for number in row[row > 0])
            left = iter(scene.text)
            assert all(letter in left for letter in dict.fromkeys(letters)), (letters, scene.text)
    assert seen > 30


@pytest.mark.parametrize("text", [*WORDS, "0", str(LARGEST_NUMBER)])
def test_every_text_can_be_spelled(text: str) -> None:
    word = spell(text)
    assert len(word) == SLOTS
    assert "".join(LETTERS[number - 1] for number in word if number) == text
