"""Traces with facts, floors and statistics that no run has, compared with a valid one; and maps of names."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from released_json import released_config

from fuzzing.mutation import HOSTILE_TEXTS, Rng, hostile_json, json_bytes, mutate, mutate_json
from fuzzing.safetensors_inputs import safetensors_bytes
from fuzzing.target import MB, Target
from pg2ref.arrays import Array
from pg2ref.config import parse_config
from pg2ref.parity.compare import compare
from pg2ref.parity.name_map import SHIPPED, load_map
from pg2ref.parity.records import open_record, rename
from pg2ref.parity.trace_file import FullWriter, StatsWriter
from pg2ref.parity.weightless import diagnose_without_model

FACTS = ("config", "policy", "answer_ids", "model", "points")  # JSON in the metadata
STAGES: Mapping[str, tuple[int, ...]] = {
    "pixel_values": (3, 4, 4),
    "prefix/embeddings": (5, 32),
    "text/layer_00/input_layernorm": (5, 32),
    "text/layer_00/query": (5, 4, 16),
    "text/layer_00/attention_out": (5, 64),
    "text/layer_00/out": (5, 32),
    "logits": (1, 40),
    "step_001/text/layer_00/out": (1, 32),
    "step_001/logits": (1, 40),
}
FORMS = ("{layer}", "{layer:02d}", "{layer:9999999999d}", "{layer.x}", "{layer[0]}", "{layer!r:>9}", "{0}", "{", "{}")
NAMES = ("model.layers.3.mlp", "logits", "x", "layer_0", "")


@cache
def seeds() -> tuple[bytes, ...]:
    """One run in full and in summaries, twice: the second is a little off from the second layer on."""
    config = parse_config(released_config("small"))
    described = {"config": asdict(config), "policy": {"window": "transformers", "resize": "bicubic", "loc_scale": 1023}}
    described |= {"answer_ids": [7, 9], "model": {"id": "small", "adapters": []}}
    facts = {name: json.dumps(value) for name, value in described.items()} | {"precision": "f32"}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for off in (0.0, 0.1):
            path = Path(folder) / "trace"
            with FullWriter(path, lambda _: True, len(STAGES)) as full:
                stats = StatsWriter(path, lambda _: True)
                for name, array in arrays(off).items():
                    stats(name, full(name, array))
                floors = {name: {"f32": 1e-6, "bf16": 1e-3} for name in STAGES}
                full.finish(facts, np.arange(5), floors)
            found.append(path.read_bytes())
            stats.finish(facts, np.arange(5), floors)
            found.append(path.read_bytes())
    return tuple(found)


def arrays(off: float) -> dict[str, Array]:
    """Numbers of every stage."""
    rng = np.random.default_rng(3)
    exact = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in STAGES.items()}
    return {name: array + np.float32(off if "out" in name else 0) for name, array in exact.items()}


def make_trace(rng: Rng) -> bytes:
    """Bytes changed, or the header, or a fact inside it, or the numbers."""
    valid = rng.choice(seeds())
    how = rng.random()
    if how < 0.1:
        return valid
    if how < 0.3:
        return mutate(valid, rng, seeds())
    end = 8 + int.from_bytes(valid[:8], "little")
    header, data = json.loads(valid[8:end]), valid[end:]
    if how < 0.45:
        header = mutate_json(header, rng)
    elif how < 0.9:
        name = rng.choice(FACTS)
        value = json.loads(header["__metadata__"][name])
        changed = mutate_json(value, rng) if rng.random() < 0.8 else hostile_json(rng)
        header["__metadata__"][name] = json_bytes(changed, rng).decode("utf-8", "replace")
    else:
        data = mutate(data, rng, seeds())[: len(data)].ljust(len(data), b"\xff")
    return safetensors_bytes(json_bytes(header, rng), data)


def read_trace(content: bytes, folder: Path) -> None:
    """As REFERENCE and as OTHER; what is said of it is JSON."""
    path, valid = folder / "changed", folder / "valid"
    path.write_bytes(content)
    valid.write_bytes(seeds()[0])
    changed, known = open_record(path), open_record(valid)
    with np.errstate(all="ignore"):  # as the command does: the verdict tells
        for reference, other in ((known, changed), (changed, known)):
            found = compare(reference, other, precision="f32")
            json.dumps(found.to_dict(), allow_nan=False)
            if not found.is_close and (diagnosis := diagnose_without_model(reference, other)):
                json.dumps(diagnosis.to_dict(), allow_nan=False)


@cache
def maps() -> tuple[bytes, ...]:
    """Those of the package."""
    return tuple((files("pg2ref.parity") / "maps" / f"{name}.toml").read_bytes() for name in SHIPPED)


def make_map(rng: Rng) -> bytes:
    """A map of the package, changed; or a rule of any kind."""
    if rng.random() < 0.6:
        return mutate(rng.choice(maps()), rng, maps())
    stage = rng.choice((*FORMS, *HOSTILE_TEXTS))
    rule = {"match": r".*?(?P<layer>\d*)\D*", "stage": f"text/layer_{stage}/out", "axes": rng.choice((0, 1, 2, -1, 9))}
    rule |= {"transpose": rng.choice(([0], [1, 0], [0, 0], [-1, 0], []))} if rng.random() < 0.5 else {}
    rule |= {rng.choice(("goes_into", "stacked")): rng.choice(("layer", "x"))} if rng.random() < 0.5 else {}
    changed = {key: mutate_json(value, rng) if rng.random() < 0.2 else value for key, value in rule.items()}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in changed.items())
    return f"[[array]]\n{lines}\n".encode("utf-8", "replace")


def read_map(content: bytes, folder: Path) -> None:
    """Load it, and apply it to some arrays."""
    path = folder / "own.toml"
    path.write_bytes(content)
    name_map = load_map(str(path))
    for name in NAMES:
        record = rename("dump", {name: np.zeros((2, 3), np.float32)}, {}, name_map)
        assert all(isinstance(stage, str) for stage in record.stages)


TARGETS = (Target("trace", make_trace, read_trace, 64 * MB), Target("map", make_map, read_map, 64 * MB))
