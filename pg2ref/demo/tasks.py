"""What the built-in model is asked about a scene, and the right answers, in PaliGemma's own syntax.

    caption en                              two red circles and a blue square      (also de, fr, es)
    answer en how many red circles?         2                                      (0 where there is none)
    answer en what colour is the star?      red                                    (asked where the answer is unique)
    answer en what shape is the red object? star                                   (likewise)
    ocr                                     ICE                                    (`none` without a text)
    detect red circle ; blue square         <loc0100><loc0200><loc0300><loc0400> red circle ; ...
    segment red circle                      the same with 16 <seg...> behind the four <loc...>

Objects of one label come largest first, labels in the order they were asked for; what is not there is left out, and
where nothing is left the answer is `none`, never empty. A caption counts equal objects together, in the order of the
largest of each. Locations are y0 x0 y1 x1, round(1023 * edge / side), as PaliGemma was trained (big_vision
pp/proj/paligemma/segmentation.py).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pg2ref.arrays import Array
from pg2ref.demo.drawing.colours import COLOURS
from pg2ref.demo.drawing.dice import Dice
from pg2ref.demo.drawing.shapes import SHAPES
from pg2ref.demo.languages import LANGUAGES, say
from pg2ref.demo.scene import Scene, SceneObject

LAST_BIN = 1023
NOTHING = "none"

MaskEncoder = Callable[[Array], Sequence[int]]  # mask_YX of the object's box -> 16 codes of the VQ-VAE


class Task(NamedTuple):
    """A prompt about a scene, and the answer; `kind` names the row of the table it counts for."""

    kind: str
    prompt: str
    answer: str


def caption(scene: Scene, language: str) -> Task:
    """Every object, equal ones counted together."""
    counted = Counter((one.placed.colour, one.placed.shape) for one in scene.objects)
    counts = [(count, *kind) for kind, count in counted.items()]  # in the order of their first, the largest
    return Task(f"caption {language}", f"caption {language}", say(language, counts))


def count(scene: Scene, colour: str | None, shape: str | None) -> Task:
    """How many objects of a colour, of a shape, or both, or at all where both are None."""
    matching = [one for one in scene.objects if _is(one, colour, shape)]
    noun = LANGUAGES["en"].nouns[shape].many if shape else "objects"
    asked = f"{colour} {noun}" if colour else noun
    return Task("count", f"answer en how many {asked}?", str(len(matching)))


def colour_questions(scene: Scene) -> list[Task]:
    """The colour of each shape that occurs once."""
    return [
        Task("colour", f"answer en what {spelled} is the {shape}?", colour)
        for shape, colour in _once([(one.placed.shape, one.placed.colour) for one in scene.objects])
        for spelled in ("colour", "color")
    ]


def shape_questions(scene: Scene) -> list[Task]:
    """The shape of each colour that occurs once."""
    return [
        Task("shape", f"answer en what shape is the {colour} object?", shape)
        for colour, shape in _once([(one.placed.colour, one.placed.shape) for one in scene.objects])
    ]


def ocr(scene: Scene) -> Task:
    """The word or number in the picture."""
    return Task("ocr", "ocr", scene.text or NOTHING)


def detect(scene: Scene, labels: Sequence[str]) -> Task:
    """The boxes of the labels' objects."""
    return Task("detect", f"detect {' ; '.join(labels)}", _listed(scene, labels, lambda one: ""))


def segment(scene: Scene, labels: Sequence[str], encode: MaskEncoder) -> Task:
    """The same with masks; `encode` turns the mask inside an object's box into its 16 codes."""

    def codes(one: SceneObject) -> str:
        x0, y0, x1, y1 = one.box_xyxy_px
        return "".join(f"<seg{code:03d}>" for code in encode(one.mask_YX[y0:y1, x0:x1]))

    return Task("segment", f"segment {' ; '.join(labels)}", _listed(scene, labels, codes))


def first_questions(scene: Scene) -> list[str]:
    """What a visitor is shown first: prompts for a caption, and for everything there is."""
    labels = dict.fromkeys(one.label for one in scene.objects)
    return [caption(scene, "en").prompt, detect(scene, list(labels)).prompt]


def draw_tasks(scene: Scene, dice: Dice, encode: MaskEncoder | None = None) -> list[Task]:
    """One task of each kind that can be asked about a scene; drawn by `dice`, so that a seed asks the same.

    Segmentation is asked where there is an encoder. Of ten labels that are asked for or counted, about seven are in
    the scene.
    """
    colour, shape = _kind(scene, dice).split()
    wanted = dice.choose(((colour, shape), (colour, shape), (colour, None), (None, shape), (None, None)))
    labels = list(dict.fromkeys(_kind(scene, dice) for _ in range(dice.between(1, 3))))
    tasks = [
        caption(scene, dice.choose(tuple(LANGUAGES))),
        count(scene, *wanted),
        ocr(scene),
        detect(scene, labels),
    ]
    for questions in (colour_questions(scene), shape_questions(scene)):
        if questions:
            tasks.append(dice.choose(questions))
    if encode is not None:
        tasks.append(segment(scene, [_kind(scene, dice)], encode))
    return tasks


def _kind(scene: Scene, dice: Dice) -> str:
    """A label: one of the scene's in seven of ten cases, else any."""
    if dice.percent(70):
        return dice.choose(scene.objects).label
    return f"{dice.choose(tuple(COLOURS))} {dice.choose(SHAPES)}"


def _is(one: SceneObject, colour: str | None, shape: str | None) -> bool:
    return colour in (None, one.placed.colour) and shape in (None, one.placed.shape)


def _once(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs whose first word occurs in no other."""
    times = Counter(first for first, _ in pairs)
    return [(first, second) for first, second in pairs if times[first] == 1]


def _listed(scene: Scene, labels: Sequence[str], codes: Callable[[SceneObject], str]) -> str:
    found = [
        f"{locations(one.box_xyxy_px, scene.size_px)}{codes(one)} {label}"
        for label in labels
        for one in scene.objects
        if one.label == label
    ]
    return " ; ".join(found) or NOTHING


def locations(box_xyxy_px: tuple[int, int, int, int], size_px: int) -> str:
    """A box of a square picture as four location tokens."""
    x0, y0, x1, y1 = box_xyxy_px
    return "".join(f"<loc{(2 * LAST_BIN * edge + size_px) // (2 * size_px):04d}>" for edge in (y0, x0, y1, x1))
