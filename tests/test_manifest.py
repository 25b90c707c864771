"""quantization.json: what is written is read, and no manifest, however wrong, is believed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pg2ref.arrays import Array
from pg2ref.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    Quantized,
    part_names,
    read_manifest,
    unfold,
    write_manifest,
)
from pg2ref.errors import CheckpointError
from pg2ref.quantized import QuantizedMatrix, stored_shapes

NAME, OTHER = "language_model.model.layers.0.mlp.up_proj.weight", "lm_head.weight"
TENSORS = {NAME: Quantized(4, (20, 40)), OTHER: Quantized(8, (3, 5))}
MANIFEST = Manifest("int4", {"name": "somewhere", "weights": "bf16", "files": {"model.safetensors": 12}}, TENSORS)
Fields = dict[str, Any]


def stored_tensors() -> dict[str, Array]:
    found: dict[str, Array] = {"norm.weight": np.ones(4, np.uint16)}
    for name, (bits, shape) in TENSORS.items():
        codes_shape, scales_shape = stored_shapes(shape, bits)
        codes_name, scales_name = part_names(name)
        found |= {codes_name: np.ones(codes_shape, np.uint8), scales_name: np.ones(scales_shape, np.uint16)}
    return found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    text = (tmp_path / MANIFEST_NAME).read_text()
    assert json.loads(text)["format"] == "pg2ref-quantized/1"
    assert f'    "{NAME}": {{"bits": 4, "shape": [20, 40]}},\n' in text, "a line a tensor"


def test_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


def entry(**changed: Any) -> Callable[[Fields], None]:
    def edit(fields: Fields) -> None:
        fields["tensors"][NAME] |= changed

    return edit


def field(**changed: Any) -> Callable[[Fields], None]:
    return lambda fields: fields.update(changed)


HOSTILE: dict[str, tuple[Callable[[Fields], Any], str]] = {
    "another format": (field(format="pg2ref-quantized/2"), "format is 'pg2ref-quantized/2', expected .*quantise the"),
    "no format": (lambda fields: fields.pop("format"), "format is None, expected"),
    "a format that is no string": (field(format=["pg2ref-quantized/1"]), "format is .*expected"),
    "an unknown field": (field(zero_points={}), "expected format, group, to, source and tensors, got .*zero_points"),
    "a missing field": (lambda fields: fields.pop("source"), "expected format, group, to, source and tensors"),
    "another group": (field(group=64), "group is 64, expected 32"),
    "a group that is no integer": (field(group=32.0), r"group is 32\.0, expected 32"),
    "another type": (field(to="int3"), "to is 'int3', expected one of int8, int4"),
    "a type that is a list": (field(to=["int8"]), "to is .*expected one of int8, int4"),
    "a source that is a name": (field(source="mix"), "source must be an object, got 'mix'"),
    "no tensors": (field(tensors={}), "tensors must name the quantised tensors, got {}"),
    "a list of tensors": (field(tensors=[NAME]), "tensors must name"),
    "a bias": (lambda fields: fields["tensors"].update({"fc1.bias": {"bits": 8, "shape": [1, 1]}}), "ends in .weight"),
    "an entry that is a list": (lambda fields: fields["tensors"].update({NAME: [4, [20, 40]]}), "bits and shape, got"),
    "an entry with more": (entry(zero=8), "expected bits and shape, got"),
    "5 bits": (entry(bits=5), "bits is 5, expected 8 or 4"),
    "true bits": (entry(bits=True), "bits is True, expected 8 or 4"),
    "bits that are a list": (entry(bits=[4]), r"bits is \[4\], expected 8 or 4"),
    "one axis": (entry(shape=[800]), "shape must be two positive integers"),
    "three axes": (entry(shape=[2, 10, 40]), "shape must be two positive integers"),
    "no rows": (entry(shape=[0, 40]), "shape must be two positive integers"),
    "a negative shape": (entry(shape=[-20, -40]), "shape must be two positive integers"),
    "a shape of floats": (entry(shape=[20.0, 40]), "shape must be two positive integers"),
    "a shape of true": (entry(shape=[True, 40]), "shape must be two positive integers"),
    "a shape beyond all memory": (entry(shape=[1 << 60, 1 << 60]), "shape must be two positive integers"),
    "a shape that is a word": (entry(shape="20x40"), "shape must be two positive integers"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_manifests(case: str, tmp_path: Path) -> None:
    edit, message = HOSTILE[case]
    write_manifest(tmp_path, MANIFEST)
    fields = json.loads((tmp_path / MANIFEST_NAME).read_text())
    edit(fields)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_manifest(tmp_path)
    assert MANIFEST_NAME in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"format": 1, "format": 2}', "occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_manifest(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(CheckpointError, match=message):
        read_manifest(tmp_path)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_manifest(tmp_path)


def test_an_endless_manifest(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST_NAME).open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes are too many"):
        read_manifest(tmp_path)


# Manifest and tensors together.


def test_codes_and_scales_are_put_together() -> None:
    stored = stored_tensors()
    weights = unfold(stored, MANIFEST)
    assert set(weights) == {NAME, OTHER, "norm.weight"}
    assert weights["norm.weight"] is stored["norm.weight"]
    codes_name, scales_name = part_names(NAME)
    matrix = weights[NAME]
    assert isinstance(matrix, QuantizedMatrix)
    assert matrix.codes is stored[codes_name]
    assert matrix.scales is stored[scales_name]
    assert (matrix.shape, matrix.bits) == ((20, 40), 4)


def test_without_manifest_tensors_are_what_they_are() -> None:
    stored = {"norm.weight": np.ones(4, np.uint16)}
    assert unfold(stored, None) == stored
    with pytest.raises(CheckpointError, match=r"quantization\.json is missing.*up_proj\.codes.*copy the whole folder"):
        unfold(stored_tensors(), None)


CODES, SCALES = part_names(NAME)
MISFITS: dict[str, tuple[Callable[[dict[str, Array]], Any], str]] = {
    "missing codes": (lambda stored: stored.pop(CODES), rf"missing     {CODES} U8 \(2, 8, 16, 4\)"),
    "missing scales": (lambda stored: stored.pop(SCALES), rf"missing     {SCALES} BF16 \(2, 2, 16\)"),
    "codes of 8 bits": (
        lambda stored: stored.update({CODES: np.ones((2, 16, 16, 4), np.uint8)}),
        r"expected U8 \(2, 8, 16, 4\), got U8 \(2, 16, 16, 4\)",
    ),
    "signed codes": (lambda stored: stored.update({CODES: stored[CODES].view(np.int8)}), "expected U8 .*, got I8"),
    "scales in float32": (
        lambda stored: stored.update({SCALES: np.ones((2, 2, 16), np.float32)}),
        r"expected BF16 \(2, 2, 16\), got F32",
    ),
    "flat scales": (lambda stored: stored.update({SCALES: stored[SCALES].reshape(-1)}), r"got BF16 \(64,\)"),
    "both forms": (lambda stored: stored.update({NAME: np.ones((20, 40), np.uint16)}), f"doubled     {NAME} is there"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_do_not_fit(case: str) -> None:
    edit, message = MISFITS[case]
    stored = stored_tensors()
    edit(stored)
    with pytest.raises(CheckpointError, match=message) as caught:
        unfold(stored, MANIFEST)
    assert "do not fit quantization.json; copy both" in str(caught.value)


def test_all_that_do_not_fit_are_counted() -> None:
    with pytest.raises(CheckpointError, match="and 3 more") as caught:
        unfold({}, MANIFEST._replace(tensors={f"{i}.weight": Quantized(8, (1, 1)) for i in range(4)}))
    assert str(caught.value).count("missing") == 5
