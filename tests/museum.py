"""A small model and an image as the bug museum changes them, and records of what it computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_records
import numpy as np
import small_models

from pg2ref.arrays import Array
from pg2ref.inputs.image import pixel_values, read_image
from pg2ref.model import paligemma
from pg2ref.parity.bugs.run import Run
from pg2ref.parity.records import Record, plain_stage
from pg2ref.parity.trace_file import IDS
from pg2ref.trace import Trace

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


def record_of(stages: dict[str, Array], points: Callable[[str], bool] = lambda stage: True) -> Record:
    """Stages as they come from a file."""
    return Record("other", {}, {name: plain_stage(array) for name, array in stages.items() if points(name)})
