"""Writes a quantised copy of a checkpoint folder, tensor by tensor and within a tensor by rows.

What lies in the new folder is said in manifest.py and, of a single matrix, in quantized.py. Every matrix of the
language model is quantised, embedding and head included; those of the vision tower and the projector are rounded to
bf16, or quantised to 8 bits; norms, biases, positions and the patch embedding stay as they are.

Why the vision tower is bf16 unless asked: measured on random weights of 3b-224 with an int8 language model, its 8 bits
save 0.39 of 3.61 GB and a quarter of the image's time (0.9 of 1.2 s on two cores), and make the error of the image
embeddings four times as large (0.025 for 0.006, relative) and that of the final norm nearly twice (0.100 for 0.058).
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pg2ref.arrays import Array, f32_to_bf16, widen
from pg2ref.checkpoint.loader import Checkpoint, is_finite
from pg2ref.checkpoint.manifest import BITS_OF, Manifest, Quantized, part_names, write_manifest
from pg2ref.checkpoint.safetensors_file import forget_pages
from pg2ref.checkpoint.safetensors_writer import Planned, write_shards
from pg2ref.checkpoint.shards import INDEX_NAME
from pg2ref.checkpoint.tensor_table import canonical_name, is_ignored, is_matrix, is_text
from pg2ref.errors import CheckpointError, Pg2RefError, UsageError
from pg2ref.quantized import BLOCK_OUTPUTS, quantize_matrix, stored_shapes

VISION_TYPES = ("bf16", "int8")
COPIED = ("*.json", "*.model", "*.jinja", "LICENSE*", "NOTICE*")  # of the source, the index of its weights apart
WEIGHTS_AT_ONCE = 1 << 24  # 32 MB of bf16
MAX_SHARD_BYTES = 5 * 10**9  # as Transformers writes them
BF16 = np.dtype(np.uint16)


class Plan(NamedTuple):
    """What a tensor of the source becomes: codes and scales of so many bits, or numbers of a type."""

    bits: int | None
    stored: Mapping[str, Planned]


def plan_tensor(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], to: str, vision: str) -> Plan:
    """What becomes of one tensor; `to` is `int8` or `int4`, `vision` one of VISION_TYPES."""
    canonical = canonical_name(name)
    kind = to if is_text(canonical) else vision
    if not is_matrix(canonical):
        return Plan(None, {name: Planned(dtype, shape)})
    if kind == "bf16":
        return Plan(None, {name: Planned(BF16, shape)})
    bits, (outputs, inputs) = BITS_OF[kind], shape
    codes_shape, scales_shape = stored_shapes((outputs, inputs), bits)
    codes_name, scales_name = part_names(name)
    codes = Planned(np.dtype(np.uint8), codes_shape)
    return Plan(bits, {codes_name: codes, scales_name: Planned(BF16, scales_shape)})


def quantized_entries(plans: Mapping[str, Plan], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Quantized]:
    """What the manifest says of the tensors that become codes and scales."""
    return {
        name: Quantized(plan.bits, (shapes[name][0], shapes[name][1]))
        for name, plan in plans.items()
        if plan.bits is not None
    }


def quantize_checkpoint(
    source: Checkpoint,
    out: Path,
    to: str,
    *,
    source_name: str,
    vision: str = "bf16",
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Manifest:
    """Write `out`, whole or not at all: in a folder beside it that is renamed at the end. Returns its manifest.

    Memory: the pieces in work, less than 200 MB whatever the model. `on_bytes` hears how much of the source is done.

    Raises:
        UsageError: no such type, a source that is quantised already, or an `out` that holds something.
        CheckpointError: a weight is NaN or infinite.
        Pg2RefError: the disk is full, or the folder cannot be written.
    """
    out = out.resolve()  # `.` has no name to put beside it
    check_call(source, out, to, vision)
    tensors = {name: tensor for name, tensor in source.tensors.items() if not is_ignored(canonical_name(name))}
    plans = {name: plan_tensor(name, tensor.shape, tensor.dtype, to, vision) for name, tensor in tensors.items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    files = {path.name: path.stat().st_size for path in source.files}
    described = {"name": source_name, "weights": source.weight_type, "files": files}
    manifest = Manifest(to, described, quantized_entries(plans, shapes))

    def parts(name: str) -> Iterator[tuple[str, Array]]:
        return tensor_parts(name, tensors[name], plans[name], on_bytes)

    try:
        check_room(out.parent, sum(planned.nbytes for plan in plans.values() for planned in plan.stored.values()))
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as private:
            unfinished = Path(private) / out.name  # the private folder's rights are not those of a new one
            unfinished.mkdir()
            copy_small_files(source.folder, unfinished)
            write_shards(unfinished, {name: plan.stored for name, plan in plans.items()}, parts, MAX_SHARD_BYTES)
            write_manifest(unfinished, manifest)
            if out.is_dir():
                out.rmdir()  # empty; not every system renames onto one
            unfinished.rename(out)
    except OSError as error:
        raise Pg2RefError(f"{out}: cannot be written ({error.strerror}); nothing is left of it") from error
    return manifest


def check_call(source: Checkpoint, out: Path, to: str, vision: str) -> None:
    """Raises UsageError for what makes no sense."""
    if to not in BITS_OF:
        raise UsageError(f"to is {to!r}, expected one of {', '.join(BITS_OF)}")
    if vision not in VISION_TYPES:
        raise UsageError(f"vision is {vision!r}, expected one of {', '.join(VISION_TYPES)}")
    if source.manifest is not None:
        raise UsageError(
            f"{source.folder}: quantised to {source.manifest.to} already, expected the checkpoint it was made from: "
            "rounding twice adds its errors"
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: exists, expected a new folder or an empty one; give another name or remove it")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}; make it first")


def check_room(folder: Path, needed: int) -> None:
    """Raises Pg2RefError where the disk cannot take so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Pg2RefError(
            f"{folder}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; make room, or use another disk"
        )


def copy_small_files(source: Path, out: Path) -> None:
    """Config, tokenizer, preprocessor: all that is no weights."""
    for pattern in COPIED:
        for path in sorted(source.glob(pattern)):
            if path.name != INDEX_NAME and path.is_file():
                shutil.copyfile(path, out / path.name)


def tensor_parts(name: str, tensor: Array, plan: Plan, on_bytes: Callable[[int], None]) -> Iterator[tuple[str, Array]]:
    """The numbers that are stored for one tensor, some rows at a time, with the names they belong to.

    Raises:
        CheckpointError: some are not finite.
    """
    rows_at_once = max(1, WEIGHTS_AT_ONCE * len(tensor) // max(1, tensor.size) // BLOCK_OUTPUTS) * BLOCK_OUTPUTS
    for start in range(0, len(tensor), rows_at_once):
        rows = tensor[start : start + rows_at_once]
        if not is_finite(rows).all():
            raise CheckpointError(
                f"{name} holds NaN or infinity, which no code stands for: download the checkpoint again "
                "(`pg2ref inspect --verify` lists every such tensor)"
            )
        if plan.bits is not None:
            matrix = quantize_matrix(rows, plan.bits)
            yield from zip(part_names(name), (matrix.codes, matrix.scales), strict=True)
        elif plan.stored[name].dtype == rows.dtype:
            yield name, rows
        else:
            yield name, f32_to_bf16(widen(rows, np.dtype(np.float32)))
        on_bytes(rows.nbytes)
        forget_pages(tensor)
