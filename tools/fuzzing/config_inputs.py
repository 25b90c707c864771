"""config.json, generation_config.json and preprocessor_config.json: as released, with anything changed."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from released_json import preprocessor_config, released_config

from fuzzing.mutation import Rng, json_bytes, mutate, mutate_json
from fuzzing.safetensors_inputs import SMALL_FILES
from fuzzing.target import Target
from pg2ref.checkpoint.preprocessor import check_preprocessor
from pg2ref.config import parse_config, read_config
from pg2ref.published import PUBLISHED

CONFIGS: tuple[Mapping[str, Any], ...] = tuple(released_config(size) for size in ("small", *PUBLISHED))
WHOLE = [json.dumps(config).encode() for config in CONFIGS]
SMALL = parse_config(CONFIGS[0])
PREPROCESSOR = preprocessor_config(SMALL)
GENERATION = {"bos_token_id": 2, "eos_token_id": [1, 107], "pad_token_id": 0}


def make_config(rng: Rng) -> bytes:
    """Two files with a NUL between them: config.json, and often generation_config.json."""
    text = json_bytes(mutate_json(rng.choice(CONFIGS), rng), rng)
    if rng.random() < 0.3:
        text = mutate(rng.choice(WHOLE), rng, WHOLE)
    if rng.random() < 0.7:
        return text
    return text + b"\0" + json_bytes(mutate_json(GENERATION, rng), rng)


def read_both(content: bytes, folder: Path) -> None:
    """Every number that comes out is finite and of the size that the loader can compute shapes with."""
    config_text, _, generation_text = content.partition(b"\0")
    (folder / "config.json").write_bytes(config_text)
    if generation_text:
        (folder / "generation_config.json").write_bytes(generation_text)
    config = read_config(folder / "config.json")
    for value in (*dataclasses.astuple(config.vision), *dataclasses.astuple(config.text)):
        assert value is None or isinstance(value, tuple) or math.isfinite(value), config
    assert len(config.text.layer_types) == config.text.num_hidden_layers
    assert math.isfinite(config.text.query_scale)
    assert config.vision.num_image_tokens > 0


def make_preprocessor(rng: Rng) -> bytes:
    """The released one, changed."""
    whole = json.dumps(PREPROCESSOR).encode()
    if rng.random() < 0.6:
        return json_bytes(mutate_json(PREPROCESSOR, rng), rng)
    return mutate(whole, rng, [whole])


def read_preprocessor(content: bytes, folder: Path) -> None:
    """It agrees with the model, or it is refused."""
    (folder / "preprocessor_config.json").write_bytes(content)
    check_preprocessor(folder, SMALL)


TARGETS = (
    Target("config", make_config, read_both, SMALL_FILES),
    Target("preprocessor", make_preprocessor, read_preprocessor, SMALL_FILES),
)
