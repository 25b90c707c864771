"""What a trace says of the run that it records, as the strings of a safetensors file's metadata."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pg2ref.adapters.identity import identify
from pg2ref.arrays import Array
from pg2ref.config import PaliGemmaConfig
from pg2ref.outputs.result import InputImage, versions
from pg2ref.policy import Policy


@dataclass(frozen=True)
class RunFacts:
    """The run: `model` says id, revision, dtype, backend, weights, builtin and adapters, as in a result's JSON."""

    model: Mapping[str, Any]
    config: PaliGemmaConfig
    policy: Policy
    images: Sequence[InputImage]
    pixel_values: Sequence[Array]
    prompt: str
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]  # chosen after the prompt, and after each recorded step

    @property
    def input_ids(self) -> Array:
        """The prompt's ids, as they are stored."""
        return np.array(self.prompt_ids, np.int64)

    def to_metadata(self) -> dict[str, str]:
        """`precision` and `backend` are plain; `model`, `config`, `policy`, `input`, `answer_ids`, `versions` JSON.

        Of paths only the last part is kept, and of adapters digests: a record goes to other machines.
        """
        model_id = self.model["id"] or ""
        described = {
            "id": Path(model_id).name if os.path.exists(model_id) else model_id,
            "revision": self.model["revision"],
            "weights": self.model["weights"],
            "adapters": [identify(adapter) for adapter in self.model["adapters"]],
        }
        values: dict[str, Any] = {
            "model": described,
            "config": asdict(self.config),
            "policy": self.policy._asdict(),
            "input": {
                "prompt": self.prompt,
                "ids": list(self.prompt_ids),
                "images": [_image(image, pixels) for image, pixels in zip(self.images, self.pixel_values, strict=True)],
            },
            "answer_ids": list(self.answer_ids),
            "versions": versions(),
        }
        plain = {"precision": self.model["dtype"] or "", "backend": self.model["backend"] or ""}
        return plain | {name: json.dumps(value) for name, value in values.items()}


def _image(image: InputImage, pixel_values_CYX: Array) -> dict[str, Any]:
    """Digests of the file, where there is one, and of the pixel values, float32 (C, Y, X)."""
    pixels = np.ascontiguousarray(pixel_values_CYX, np.float32)
    return {
        "name": Path(image.path).name if image.path else None,
        "sha256": image.sha256,
        "size": list(image.size),
        "pixel_values_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
    }
