"""adapter_model.safetensors, as the peft package writes it: each tensor finds its place in the checkpoint, or is named.

    base_model.model.<module>.lora_A.weight          (R, D)   down
    base_model.model.<module>.lora_B.weight          (O, R)   up
    base_model.model.<module>.lora_magnitude_vector  (O,)     of DoRA, one number a row
    base_model.model.<module>.lora_embedding_A, _B   (R, V), (D, R)   of the embedding, a row a feature
    base_model.model.<module>.weight, .bias          replaced whole: modules_to_save, trained biases

<module> is the module's path in the Transformers that trained it; checkpoint/tensor_table.py knows all of them.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pg2ref.adapters.lora_config import CONFIG_NAME, LoraConfig, read_lora_config
from pg2ref.arrays import Array, widen
from pg2ref.checkpoint.loader import EMBEDDING, LISTED, WEIGHT_DTYPES, is_finite
from pg2ref.checkpoint.safetensors_file import read_tensors
from pg2ref.checkpoint.tensor_table import LM_HEAD, Shapes, canonical_name, expected_shapes, is_matrix
from pg2ref.config import PaliGemmaConfig
from pg2ref.errors import CheckpointError, shown_name

WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
DOWN, UP, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
EMBEDDING_DOWN, EMBEDDING_UP = "lora_embedding_A", "lora_embedding_B"
PART_PATTERN = re.compile(
    rf"(?P<path>.+)\.(?P<part>{DOWN}|{UP}|{MAGNITUDE}|{EMBEDDING_DOWN}|{EMBEDDING_UP})(\.default)?(\.weight)?"
)
WRAPPER_PATTERN = re.compile(r"\.(base_layer|modules_to_save\.default|modules_to_save)(?=\.)")  # of peft's own modules


class LowRank(NamedTuple):
    """What an adapter adds to one matrix (O, D): `scale` times up.T @ down, and with DoRA a length for each row."""

    down_RD: Array  # float32
    up_RO: Array
    scale: float
    magnitude_O: Array | None


class Adapter(NamedTuple):
    """One adapter, every tensor of it at its place; the keys are canonical names of the checkpoint's tensors."""

    folder: Path
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, Array]  # as stored
    saved: frozenset[str]  # those of `replaced` that are a module of their own, though the base has it tied


def read_adapter(folder: Path, config: PaliGemmaConfig) -> Adapter:
    """Read a LoRA for a checkpoint of this config.

    Raises:
        ConfigError: adapter_config.json is missing, or asks for what is not computed here.
        CheckpointError: tensors without a target, without their partner, of a wrong shape or type, or not finite: all
            of them at once.
    """
    lora = read_lora_config(folder)
    shapes = expected_shapes(config)
    shapes[LM_HEAD] = shapes[EMBEDDING]
    stored = read_tensors(_weights_file(folder)).tensors
    problems = list(_bad_numbers(stored))
    parts: dict[str, dict[str, Array]] = {}
    replaced: dict[str, Array] = {}
    saved = set()
    for name, tensor in stored.items():
        path = name.removeprefix(PREFIX)
        if match := PART_PATTERN.fullmatch(path):
            parts.setdefault(match["path"], {})[match["part"]] = tensor
            continue
        canonical = canonical_name(WRAPPER_PATTERN.sub("", path))
        problems += _misfits(name, tensor, shapes.get(canonical))
        if canonical in replaced:
            problems.append(f"doubled     {shown_name(name)} is another name of a tensor that is there already")
        replaced[canonical] = tensor
        if lora.is_saved(path.rpartition(".")[0]):
            saved.add(canonical)
    low_rank: dict[str, LowRank] = {}
    for path, of_module in parts.items():
        canonical = canonical_name(path + ".weight")
        found = list(_module_problems(path, of_module, lora, shapes.get(canonical), canonical))
        if canonical in low_rank:
            found.append(f"doubled     {shown_name(path)} is another name of a module that is there already")
        if not found:
            low_rank[canonical] = _low_rank(of_module, lora.scale_of(path))
        problems += found
    if lora.ties_weights and {EMBEDDING, LM_HEAD} & (set(replaced) | set(low_rank)):
        problems.append("not computed  ensure_weight_tying, with an embedding or an output matrix that is trained")
    if not stored:
        problems.append("empty       there is no tensor in it")
    _refuse(folder, lora, problems)
    return Adapter(folder, low_rank, replaced, frozenset(saved))


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS_NAME
    if not path.is_file() and (folder / "adapter_model.bin").is_file():
        raise CheckpointError(f"{folder}: expected {WEIGHTS_NAME}, found adapter_model.bin; convert it to safetensors")
    return path


def _refuse(folder: Path, lora: LoraConfig, problems: list[str]) -> None:
    if problems:
        listed = "\n  ".join(problems[:LISTED])
        rest = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise CheckpointError(
            f"{folder}: the adapter does not fit the checkpoint: {count}; give the checkpoint that it was trained on, "
            f"{shown_name(lora.base_name)}\n  {listed}{rest}"
        )


def _bad_numbers(stored: Mapping[str, Array]) -> Iterator[str]:
    for name, tensor in stored.items():
        if tensor.dtype not in WEIGHT_DTYPES:
            yield f"wrong type  {shown_name(name)}: expected {', '.join(WEIGHT_DTYPES.values())}, got {tensor.dtype}"
        elif not is_finite(tensor).all():
            yield f"not finite  {shown_name(name)} holds NaN or infinity"


def _misfits(name: str, tensor: Array, shape: tuple[int, ...] | None) -> Iterator[str]:
    """A line where a tensor that stands in for one of the checkpoint cannot."""
    if shape is None:
        yield f"no target   {shown_name(name)} {tensor.shape}"
    elif tensor.shape != shape:
        yield f"wrong shape {name}: expected {shape}, got {tensor.shape}"


def _module_problems(
    path: str, parts: Mapping[str, Array], lora: LoraConfig, shape: tuple[int, ...] | None, canonical: str
) -> Iterator[str]:
    """A line for each way in which the tensors of one module are not an addition to its matrix."""
    shown = shown_name(path)
    if shape is None or not is_matrix(canonical):
        yield from (f"no target   {shown}.{part} {tensor.shape}" for part, tensor in parts.items())
        return
    if not lora.is_target(path):
        yield f"no target   {shown} is not among the target_modules of {CONFIG_NAME}, so peft leaves it out"
    (outputs, inputs), rank = shape, lora.rank_of(path)
    if canonical == EMBEDDING:
        expected: Shapes = {EMBEDDING_DOWN: (rank, outputs), EMBEDDING_UP: (inputs, rank)}
    else:
        expected = {DOWN: (rank, inputs), UP: (outputs, rank)}
    if lora.use_dora and canonical == EMBEDDING:
        yield f"not computed  DoRA of an embedding, {path}; merge it with peft (merge_and_unload)"
    elif lora.use_dora:
        expected[MAGNITUDE] = (outputs,)
    for part, wanted in expected.items():
        if part not in parts:
            yield f"missing     {shown}.{part} {wanted}"
        elif parts[part].shape != wanted:
            yield f"wrong shape {shown}.{part}: expected {wanted}, got {parts[part].shape}"
    for part in parts.keys() - expected.keys():
        yield f"unexpected  {shown}.{part} {parts[part].shape}"


def _low_rank(parts: Mapping[str, Array], scale: float) -> LowRank:
    widened = {part: widen(tensor, np.dtype(np.float32)) for part, tensor in parts.items()}
    if EMBEDDING_DOWN in widened:  # its rows are what a token looks up, and the other ends at the width
        return LowRank(widened[EMBEDDING_UP].T, widened[EMBEDDING_DOWN], scale, None)
    return LowRank(widened[DOWN], widened[UP].T, scale, widened.get(MAGNITUDE))
