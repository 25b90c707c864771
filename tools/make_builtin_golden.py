"""Makes tests/golden/shapes: what Transformers computed with the built-in model, for tests that run without torch.

    python tools/make_builtin_golden.py

The model lies in the package, so the record holds only what is asked and what came of it, in float32: greedy answers,
the scores at the end of each prompt, and for the first question some stages. Scenes are drawn at the model's size:
their pixels are whole numbers, the same everywhere. Needs the `parity` extra; tools/train_demo/release.py runs it.
"""

from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
import transformers
import transformers_stages
from make_golden import ROOT, write_record
from PIL import Image
from tool_help import help_of

import pg2ref
from pg2ref.demo import builtin
from pg2ref.demo.scene import draw_scene

QUESTIONS = (
    (0, "caption en"),
    (1, "caption de"),
    (2, "detect green triangle ; blue star"),
    (3, "segment green ring"),
    (4, "ocr"),
    (5, "answer en how many purple squares?"),
    (6, "caption fr"),
    (7, "answer en how many objects?"),
    (8, "caption es"),
    (9, "ocr"),
)
STAGES = ("vision/layer_00/out", "vision/post_layernorm", "projector/out", "text/layer_00/out", "text/final_norm")
MOST_TOKENS = 40
CLEAR = 0.02  # between the log-probabilities of the two best tokens: far more than rounding


class Asked(NamedTuple):
    """A question as the models read it."""

    pixel_values: np.ndarray  # [1, C, Y, X]
    prompt_ids: list[int]
    clear_tokens: int  # of the answer, until two tokens are about as good


def ask(model: pg2ref.Model, seed: int, prompt: str) -> Asked:
    """A question about the scene of a seed."""
    picture = Image.fromarray(draw_scene(seed, model.config.vision.image_size).pixels_YXC)
    prepared = model.prepare(picture, prompt)
    result = model.generate(picture, prompt, max_new_tokens=MOST_TOKENS, logprobs=2)
    margins = [token.top[0].logprob - token.top[1].logprob for token in result.tokens]
    clear = next((i for i, margin in enumerate(margins) if margin < CLEAR), len(margins))
    return Asked(prepared.pixel_values[0][None], prepared.prompt_ids, clear)


def make(folder: Path) -> dict[str, np.ndarray]:
    """The record of all questions."""
    ours = pg2ref.load()
    theirs = transformers_stages.load_model(folder)
    record = {}
    for number, (seed, prompt) in enumerate(QUESTIONS):
        asked = ask(ours, seed, prompt)
        stages = transformers_stages.record(theirs, asked.pixel_values, asked.prompt_ids, len(asked.prompt_ids))
        answer = transformers_stages.generate(theirs, asked.pixel_values, asked.prompt_ids, MOST_TOKENS)
        record[f"{number}/prompt_ids"] = np.array(asked.prompt_ids, np.int64)
        record[f"{number}/answer"] = np.array(answer[: asked.clear_tokens], np.int64)
        record[f"{number}/logits"] = stages["logits"][-1]
        if number == 0:
            record |= {f"stage/{name}": stages[name] for name in STAGES}
        click.echo(f"{seed} {prompt}: {ours.tokenizer.detokenize(answer[: asked.clear_tokens])}")
    return record


@click.command(help=help_of(__doc__))
def main() -> None:
    """Make the record."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    record = {name: np.ascontiguousarray(value) for name, value in make(builtin.FOLDER).items()}
    questions = {f"{number}": f"{seed} {prompt}" for number, (seed, prompt) in enumerate(QUESTIONS)}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__}
    folder = ROOT / "tests" / "golden" / "shapes"
    folder.mkdir(exist_ok=True)
    write_record(folder / "record.safetensors", record, {"format": "pg2ref-golden/1", **questions, **versions})


if __name__ == "__main__":
    main()
