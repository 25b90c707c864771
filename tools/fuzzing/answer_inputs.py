"""Answers with locations and codes, and masks as run lengths: what a model, or a file of results, may hold."""

import json
from pathlib import Path

import numpy as np

from fuzzing.mutation import Rng, hostile_json, json_bytes, mutate, mutate_json
from fuzzing.target import MB, Target
from pg2ref.errors import InputError
from pg2ref.outputs.detection import TOKEN, box_xyxy_px, parse
from pg2ref.outputs.objects import find_objects
from pg2ref.outputs.rle import MOST_PIXELS, decode_mask, encode_mask

LABELS = ("cat", "dog house", "a;b", ";", " ; ", "; ", "猫", "\u0661", "", "\n", "\t", "  ", "\u2028", "\0", "\ud800")
DAMAGED = (
    "<loc",
    "<loc12>",
    "<loc12345>",
    "<loc9999>",
    "<loc1024>",
    "<seg128>",
    "<seg",
    "<l",
    "<s",
    "<",
    "<loc" + "\u0661" * 4 + ">",
)


def _location(rng: Rng) -> str:
    return f"<loc{rng.choice((0, 1, 512, 1022, 1023, rng.randrange(1024))):04d}>"


def _code(rng: Rng) -> str:
    return f"<seg{rng.randrange(128):03d}>"


def random_answer(rng: Rng) -> str:
    """Objects, and what models put between them when they go wrong."""
    pieces: list[str] = []
    for _ in range(rng.choice((1, 2, 3, 6, 40))):
        how = rng.random()
        if how < 0.5:
            pieces += [_location(rng) for _ in range(rng.choice((4, 4, 4, 3, 5, 8, 1)))]
            if rng.random() < 0.4:
                pieces += [_code(rng) for _ in range(rng.choice((16, 16, 15, 17, 1, 32)))]
            pieces.append(rng.choice(("", " ")) + rng.choice(LABELS) + rng.choice(("", " ; ", ";", " ")))
        elif how < 0.7:
            pieces.append(rng.choice(DAMAGED))
        elif how < 0.9:
            pieces.append(rng.choice(LABELS))
        else:
            pieces.append(rng.choice((_location(rng), _code(rng), " ", "<")) * rng.choice((2, 30, 2000)))
    if rng.random() < 0.1:
        rng.shuffle(pieces)
    return "".join(pieces)


def make_answer(rng: Rng) -> bytes:
    """UTF-8, lone surrogates included."""
    content = random_answer(rng).encode("utf-8", "surrogatepass")
    return mutate(content, rng, [content]) if rng.random() < 0.4 else content


def read_answer(content: bytes, folder: Path) -> None:
    """Every location and code is in an object or in a problem; boxes lie in the picture."""
    text = content.decode("utf-8", "surrogateescape")
    detections, problems = parse(text)
    tokens = len(TOKEN.findall(text))
    used = sum(4 + len(one.codes) for one in detections)
    assert used == tokens or (used < tokens and problems), "tokens that vanish"
    assert all(len(problem.splitlines()) == 1 and len(problem) < 300 for problem in problems), "messages of one line"
    for one in detections:
        x0, y0, x1, y1 = box_xyxy_px(one.box_yxyx_bins, (640, 427), 1023)
        assert 0 <= x0 < x1 <= 640
        assert 0 <= y0 < y1 <= 427
        assert len(one.codes) in (0, 16)
        assert all(0 <= code < 128 for code in one.codes)
        assert one.label == one.label.strip()
    objects, _ = find_objects(text, [], (640, 427), 1023, None)
    assert len(objects) == len(detections)


def make_run_lengths(rng: Rng) -> bytes:
    """A mask, written and changed, or text of the right characters; sizes up to the absurd."""
    height, width = rng.choice((0, 1, 2, 17, 300)), rng.choice((0, 1, 3, 19, 255))
    mask_YX = np.frombuffer(rng.randbytes(height * width), np.uint8).reshape(height, width) > rng.choice((9, 128, 250))
    rle = encode_mask(mask_YX)
    how = rng.random()
    if how < 0.3:
        rle["counts"] = mutate(rle["counts"].encode(), rng, [b"0PYY1"]).decode("latin-1")
    elif how < 0.5:
        rle["counts"] = "".join(chr(rng.randrange(47, 113)) for _ in range(rng.choice((0, 1, 5, 40))))
    elif how < 0.7:
        rle = mutate_json(rle, rng)
    elif how < 0.75:
        rle = hostile_json(rng)
    elif how < 0.752:
        rle = whole_mask(rng)
    return json_bytes(rle, rng)


def whole_mask(rng: Rng) -> dict[str, object]:
    """A large mask in a few characters: one run as long as the size."""
    height = rng.choice((1, 1000, 40_000, 65_535))
    width = min(MOST_PIXELS // height + rng.choice((-1, 0, 1)), 1 << 20)
    return encode_mask(np.zeros((1, 1), bool)) | {"size": [height, width], "counts": run_text(height * width)}


def run_text(count: int) -> str:
    """One count in COCO's characters, by the description in rle.py."""
    characters = []
    while True:
        five, count = count & 31, count >> 5
        more = count != 0 or five & 16
        characters.append(chr(48 + five + (32 if more else 0)))
        if not more:
            return "".join(characters)


def read_run_lengths(content: bytes, folder: Path) -> None:
    """A mask of the size that was stated, which written again gives the same mask."""
    try:
        rle = json.loads(content.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        raise InputError("not JSON: not this reader's business") from None
    mask_YX = decode_mask(rle)
    assert list(mask_YX.shape) == rle["size"]
    if mask_YX.size < 1 << 20:
        assert (decode_mask(encode_mask(mask_YX)) == mask_YX).all()


TARGETS = (
    Target("answer", make_answer, read_answer, 16 * MB),
    Target("run lengths", make_run_lengths, read_run_lengths, 16 * MB + MOST_PIXELS),
)
