"""Step 9 of 9, second half: the answer with everything needed to trust it, and its JSON form `pg2ref/result/1`.

Fields are only ever added within a version of the schema.
"""

import json
import platform
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

from pg2ref.errors import UsageError
from pg2ref.inputs.image import Picture
from pg2ref.outputs.objects import DetectedObject

SCHEMA = "pg2ref/result/1"


@dataclass(frozen=True)
class InputImage:
    """One image as it came: `path` and `sha256` (of the file) where it came as a file, its size in pixels.

    `frame` is its place, from 0, in a file that holds several.
    """

    path: str | None
    sha256: str | None
    size: tuple[int, int]  # width, height, after EXIF orientation
    frame: int | None = None


@dataclass(frozen=True)
class Alternative:
    """A token that could have stood in a place, with its text."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Token:
    """One token of the answer; `logprob` before temperature and filters."""

    id: int
    text: str
    logprob: float
    top: tuple[Alternative, ...]


@dataclass(frozen=True)
class Timing:
    """Seconds of each phase; `decode_tok_s` is None where fewer than two tokens were made."""

    load_s: float
    vision_s: float
    prefill_s: float  # to the first token
    decode_s: float
    decode_tok_s: float | None


@dataclass(frozen=True)
class Result:
    """What `Model.generate` returns."""

    model: dict[str, Any]  # id, revision (of the Hugging Face cache), dtype, backend, weights
    images: tuple[InputImage, ...]
    prompt: str
    prompt_ids: tuple[int, ...]
    num_image_tokens: int  # of all images
    text: str
    objects: tuple[DetectedObject, ...]  # in the first image
    problems: tuple[str, ...]  # what of boxes and masks in the text could not be understood
    finish_reason: str | None  # "stop", "length", or None while the answer is unfinished
    tokens: tuple[Token, ...]  # the end-of-text token included
    policy: dict[str, Any]
    timing: Timing
    warnings: tuple[str, ...]
    versions: dict[str, str]
    picture: Picture | None = field(repr=False, compare=False)  # the first image, upright, in RGB; not in the JSON

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the answer, the end-of-text token included."""
        return tuple(token.id for token in self.tokens)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log-probability of each token of the answer."""
        return tuple(token.logprob for token in self.tokens)

    def overlay(self) -> Picture:
        """The first image with the objects' boxes, masks and labels on it, as a new PIL image."""
        from pg2ref.outputs.overlay import draw_overlay

        if self.picture is None:
            raise UsageError("this result has no picture to draw on: take the one that generate returned")
        return draw_overlay(self.picture, self.objects)

    def to_supervision(self) -> Any:
        """The objects as `supervision.Detections`: boxes, scores, masks where all have one, `data["class_name"]`.

        Objects without a score get 1, as Detections knows no missing one.

        Raises UsageError where the package supervision is not installed.
        """
        try:
            from pg2ref.outputs.supervision_detections import detections
        except ImportError:
            raise UsageError("to_supervision needs the package supervision: pip install supervision") from None
        return detections(self.objects)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object as Python values."""
        fields = asdict(replace(self, objects=(), picture=None))  # neither pictures nor masks are copied
        del fields["picture"]
        fields["objects"] = [one.to_dict() for one in self.objects]
        return {"schema": SCHEMA, "model": fields.pop("model"), "input": input_fields(fields), **fields}

    def to_json(self) -> str:
        """One line of JSON in ASCII, which no terminal, pipe or odd file name can spoil."""
        return json.dumps(self.to_dict())


def input_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Take out of an answer's fields what was asked, as the JSON's `input`."""
    return {
        "images": fields.pop("images"),
        "prompt": fields.pop("prompt"),
        "ids": fields.pop("prompt_ids"),
        "image_tokens": fields.pop("num_image_tokens"),
    }


def versions() -> dict[str, str]:
    """What computed: the libraries whose version may change numbers or times."""
    return {name: version(name) for name in ("pg2ref", "numpy", "pillow", "numba")} | {
        "python": platform.python_version()
    }
