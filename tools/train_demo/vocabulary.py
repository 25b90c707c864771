"""The built-in model's vocabulary: the words of its tasks in four languages, in the released layout.

The words that scenes carry are left out on purpose: they are spelled letter by letter, so that a word never seen
can be read too.
"""

import tempfile
from pathlib import Path

import tokenizer_model
from architecture import CODES, LOCATIONS

from pg2ref.demo.drawing.colours import COLOURS
from pg2ref.demo.drawing.shapes import SHAPES
from pg2ref.demo.languages import LANGUAGES, say
from pg2ref.demo.tasks import NOTHING
from pg2ref.inputs.tokenizer import Tokenizer

FIRST_LOCATION = 1024  # the id of <loc0000>: room for all words and all single letters
IMAGE_ID = FIRST_LOCATION + LOCATIONS + CODES
VOCAB_SIZE = 2240  # rows of the embedding table: one for <image>, filled up to a multiple of 64


def sentences() -> list[str]:
    """Everything that can be asked or answered, locations, codes and the words in pictures apart."""
    lines = ["ocr", NOTHING, *(f"caption {language}" for language in LANGUAGES)]
    for colour in COLOURS:
        lines += [colour, f"answer en what shape is the {colour} object?"]
        lines += [f"answer en how many {colour} objects?", "answer en how many objects?"]
        for shape in SHAPES:
            lines += [shape, f"detect {colour} {shape} ; {colour} {shape}", f"segment {colour} {shape}"]
            many = LANGUAGES["en"].nouns[shape].many
            lines += [f"answer en how many {colour} {many}?", f"answer en how many {many}?"]
            lines += [f"answer en what {spelled} is the {shape}?" for spelled in ("colour", "color")]
            lines += [
                say(language, [(first, colour, shape), (second, colour, shape), (1, colour, shape)])
                for language in LANGUAGES
                for first, second in ((1, 2), (2, 1), (3, 4), (4, 3))
            ]
    return lines


def write_tokenizer(folder: Path) -> Tokenizer:
    """Write the tokenizer files into a checkpoint's folder, and open them.

    Each is whole as soon as it is there: processes that train together all write them, and read what others wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as private:
        image_id = tokenizer_model.write_tokenizer_files(Path(private), FIRST_LOCATION, sentences())
        assert image_id == IMAGE_ID
        for path in Path(private).iterdir():
            path.replace(folder / path.name)
    return Tokenizer.load(folder, IMAGE_ID)
