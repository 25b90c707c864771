"""A small model and an image as the bug museum changes them, errors of other kinds, and records of what comes out."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_records
import numpy as np
import small_models

from pg2ref.arrays import Array
from pg2ref.inputs.image import pixel_values, read_image
from pg2ref.model import ops, paligemma
from pg2ref.parity.bugs.run import Run, with_language_model, with_operations, with_text_fields
from pg2ref.parity.records import Record, plain_stage
from pg2ref.parity.trace_file import IDS
from pg2ref.parity.weightless import diagnose_without_model
from pg2ref.quantized import widen_rows
from pg2ref.trace import Prefixed, Trace

SCENE = Path(__file__).parent / "data" / "scene.png"
BLOCK_ENDS = ("/out", "pixel_values", "patch_embeddings", "post_layernorm", "prefix/embeddings", "logits", IDS)


def make_run(dtype: Any = np.float64, case_name: str = "base") -> Run:
    """The case's model and ids, with a real picture, so that resizing matters."""
    record = golden_records.read_record(case_name)
    run, picture = golden_records.run_of(record), read_image(SCENE)
    model = small_models.open_model(record.folder, dtype)
    pixels = pixel_values(picture, model.config.vision.image_size)
    return run._replace(model=model, pixel_values=(pixels,), pictures=(picture,))


def stages_of(run: Run) -> dict[str, Array]:
    """Every stage of prompt and answer."""
    trace = Trace()
    embeddings_ID = paligemma.encode_images(run.model, list(run.pixel_values), tap=trace)
    ids = [*run.prompt_ids, *run.answer_ids]
    paligemma.forward(run.model, embeddings_ID, ids, len(run.prompt_ids), tap=trace)
    return {IDS: np.array(run.prompt_ids), **trace.stages}


def stages_in_steps(run: Run) -> dict[str, Array]:
    """The same, the answer read token by token."""
    trace = Trace()
    embeddings_ID = paligemma.encode_images(run.model, list(run.pixel_values), tap=trace)
    cache = run.model.empty_cache(64, len(run.prompt_ids))
    paligemma.prefill(run.model, embeddings_ID, run.prompt_ids, cache, tap=trace)
    for number, token_id in enumerate(run.answer_ids, start=1):
        paligemma.step(run.model, [token_id], [cache], tap=Prefixed(trace, f"step_{number:03d}/"))
    return {IDS: np.array(run.prompt_ids), **trace.stages}


def record_of(stages: dict[str, Array], points: Callable[[str], bool] = lambda stage: True) -> Record:
    """Stages as they come from a file."""
    return Record("other", {}, {name: plain_stage(array) for name, array in stages.items() if points(name)})


def without_weights(truth: Run, broken: Run) -> tuple[str, ...]:
    """What is named from traces alone, of the prompt and the steps of the answer, in full."""
    facts = {"config": json.dumps(dataclasses.asdict(truth.model.config)), "answer_ids": json.dumps(truth.answer_ids)}
    reference = dataclasses.replace(record_of(stages_in_steps(truth)), facts=facts)
    found = diagnose_without_model(reference, record_of(stages_in_steps(broken)))
    assert found is not None
    return found.names


def noisy_weight(run: Run) -> Run:
    layers = list(run.model.params.language_model.layers)
    weight = widen_rows(layers[1].up_proj, np.dtype(np.float32), 0, 10**9).copy()
    weight += 0.01 * np.random.default_rng(1).standard_normal(weight.shape).astype(np.float32)
    layers[1] = layers[1]._replace(up_proj=weight)
    return with_language_model(run, layers=tuple(layers))


def gate_and_up_exchanged(run: Run) -> Run:
    layers = list(run.model.params.language_model.layers)
    layers[2] = layers[2]._replace(gate_proj=layers[2].up_proj, up_proj=layers[2].gate_proj)
    return with_language_model(run, layers=tuple(layers))


def noisy_pixels(run: Run) -> Run:
    noise = np.random.default_rng(2).normal(0, 0.05, run.pixel_values[0].shape).astype(np.float32)
    return run._replace(pixel_values=(run.pixel_values[0] + noise,))


OTHER_ERRORS: dict[str, Callable[[Run], Run]] = {  # mistakes that the museum does not have
    "noise in one weight": noisy_weight,
    "gate and up exchanged in one layer": gate_and_up_exchanged,
    "noise on the pixels": noisy_pixels,
    "pixels from 0 to 1": lambda run: run._replace(pixel_values=tuple((p + 1) / 2 for p in run.pixel_values)),
    "another token": lambda run: run._replace(prompt_ids=(*run.prompt_ids[:-2], 7, run.prompt_ids[-1])),
    "another embedding scale": lambda run: with_operations(run, scale=lambda x, factor: x * (1.06 * factor)),
    "another eps": lambda run: with_operations(run, rms_norm=lambda x, scale, eps: ops.rms_norm(x, scale, 1e-2)),
    "another cap": lambda run: with_text_fields(run, attn_logit_softcapping=4.5),
    "another window": lambda run: with_text_fields(run, sliding_window=3),
    "another window policy": lambda run: run._replace(model=run.model._replace(window_policy="keras")),
    "another theta": lambda run: with_text_fields(run, rope_theta=1e6),
    "another query scale": lambda run: with_text_fields(run, query_pre_attn_scalar=14),
}
