"""quantization.json: which tensors of a folder are quantised, and what they were made from.

    {"format": "pg2ref-quantized/1", "group": 32, "to": "int4",
     "source": {"name": "google/paligemma2-3b-mix-224", "weights": "bf16", "files": {"model-00001-...": 4988025760}},
     "tensors": {"language_model.model.embed_tokens.weight": {"bits": 4, "shape": [257216, 2304]}, ...}}

A tensor `X.weight` that is named there lies in the weight files as two, `X.codes` (U8) and `X.scales` (BF16), laid out
as quantized.py says; every other tensor lies there as in any checkpoint. `to` is what the language model's matrices
are; those of the vision tower may have more bits, or be left as they were.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pg2ref.arrays import Array
from pg2ref.checkpoint.safetensors_file import DTYPES, STORED_NAMES, parse_json_object
from pg2ref.checkpoint.shards import MAX_INDEX_BYTES, name_some
from pg2ref.errors import CheckpointError, brief
from pg2ref.quantized import GROUP, ZERO, QuantizedMatrix, Weight, stored_shapes

MANIFEST_NAME = "quantization.json"
FORMAT = "pg2ref-quantized/1"
BITS_OF = {"int8": 8, "int4": 4}
WEIGHT, CODES, SCALES = ".weight", ".codes", ".scales"
LONGEST_AXIS = 1 << 31
LISTED = 5


class Quantized(NamedTuple):
    """What the manifest says of one matrix."""

    bits: int
    shape: tuple[int, int]


class Manifest(NamedTuple):
    """quantization.json, read and checked by itself; whether the tensors fit is for `unfold`."""

    to: str  # "int8" or "int4"
    source: Mapping[str, Any]
    tensors: Mapping[str, Quantized]  # under the names of the source


def part_names(name: str) -> tuple[str, str]:
    """The two tensors that `X.weight` lies in: `X.codes` and `X.scales`."""
    stem = name.removesuffix(WEIGHT)
    return stem + CODES, stem + SCALES


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write quantization.json, a line a tensor."""
    fields = {"format": FORMAT, "group": GROUP, "to": manifest.to, "source": manifest.source}
    lines = [
        f"    {json.dumps(name)}: {json.dumps({'bits': bits, 'shape': list(shape)})}"
        for name, (bits, shape) in manifest.tensors.items()
    ]
    head = json.dumps(fields, indent=2).removesuffix("\n}")
    text = head + ',\n  "tensors": {\n' + ",\n".join(lines) + "\n  }\n}\n"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None where it has none, as most checkpoints.

    Raises:
        CheckpointError: it cannot be read, is of another format, or says what cannot be.
    """
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes are too many for a manifest")
        fields = parse_json_object(path.read_bytes(), MANIFEST_NAME)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if fields.get("format") != FORMAT:
        raise CheckpointError(
            f"{MANIFEST_NAME}: format is {brief(fields.get('format'))}, expected {FORMAT!r}: quantise the source again "
            "with this version of pg2ref"
        )
    if set(fields) != {"format", "group", "to", "source", "tensors"}:
        raise CheckpointError(
            f"{MANIFEST_NAME}: expected format, group, to, source and tensors, got {name_some(fields)}"
        )
    to, source, tensors = fields["to"], fields["source"], fields["tensors"]
    if fields["group"] != GROUP or type(fields["group"]) is not int:
        raise CheckpointError(f"{MANIFEST_NAME}: group is {brief(fields['group'])}, expected {GROUP}")
    if not isinstance(to, str) or to not in BITS_OF:
        raise CheckpointError(f"{MANIFEST_NAME}: to is {brief(to)}, expected one of {', '.join(BITS_OF)}")
    if not isinstance(source, dict):
        raise CheckpointError(f"{MANIFEST_NAME}: source must be an object, got {brief(source)}")
    if not isinstance(tensors, dict) or not tensors:
        raise CheckpointError(f"{MANIFEST_NAME}: tensors must name the quantised tensors, got {brief(tensors)}")
    return Manifest(to, source, {name: _read_entry(name, entry) for name, entry in tensors.items()})


def _read_entry(name: str, entry: object) -> Quantized:
    at = f"{MANIFEST_NAME}: tensor {brief(name)}"
    if not name.endswith(WEIGHT):
        raise CheckpointError(f"{at}: expected a name that ends in {WEIGHT}")
    if not isinstance(entry, dict) or set(entry) != {"bits", "shape"}:
        raise CheckpointError(f"{at}: expected bits and shape, got {brief(entry)}")
    bits, shape = entry["bits"], entry["shape"]
    if type(bits) is not int or bits not in ZERO:
        raise CheckpointError(f"{at}: bits is {brief(bits)}, expected 8 or 4")
    is_shape = isinstance(shape, list) and len(shape) == 2
    if not is_shape or not all(type(size) is int and 0 < size < LONGEST_AXIS for size in shape):
        raise CheckpointError(f"{at}: shape must be two positive integers, outputs and inputs, got {brief(shape)}")
    return Quantized(bits, (shape[0], shape[1]))


def unfold(stored: Mapping[str, Array], manifest: Manifest | None) -> dict[str, Weight]:
    """The weights under the names of the source: codes and scales put together, the rest as it is.

    Raises:
        CheckpointError: all that is missing, doubled, or of another shape or type than the manifest says, at once.
    """
    if manifest is None:
        codes = [name for name in stored if name.endswith(CODES)]
        if codes:
            raise CheckpointError(
                f"{MANIFEST_NAME} is missing, which says what {name_some(codes, LISTED)} are; copy the whole folder"
            )
        return dict(stored)
    problems = [line for name, entry in manifest.tensors.items() for line in _misfits(stored, name, entry)]
    if problems:
        lines = problems[:LISTED] + ([f"and {len(problems) - LISTED} more"] if problems[LISTED:] else [])
        listed = "\n  ".join(lines)
        raise CheckpointError(f"the weights do not fit {MANIFEST_NAME}; copy both from the same folder\n  {listed}")
    weights: dict[str, Weight] = dict(stored)
    for name, (bits, shape) in manifest.tensors.items():
        codes_name, scales_name = part_names(name)
        del weights[codes_name], weights[scales_name]
        weights[name] = QuantizedMatrix(stored[codes_name], stored[scales_name], shape, bits)
    return weights


def _misfits(stored: Mapping[str, Array], name: str, entry: Quantized) -> Iterator[str]:
    """A line for each way in which the stored tensors are not what the manifest says of one."""
    shapes = stored_shapes(entry.shape, entry.bits)
    for part, stored_dtype, shape in zip(part_names(name), ("U8", "BF16"), shapes, strict=True):
        tensor = stored.get(part)
        if tensor is None:
            yield f"missing     {part} {stored_dtype} {shape}"
        elif tensor.shape != shape or tensor.dtype != DTYPES[stored_dtype]:
            got = f"{STORED_NAMES[tensor.dtype]} {tensor.shape}"
            yield f"wrong       {part}: expected {stored_dtype} {shape}, got {got}"
    if name in stored:
        yield f"doubled     {name} is there itself too"
