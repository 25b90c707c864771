"""Makes tests/golden: small checkpoints, and what Transformers computed with them, for tests that run without torch.

    python tools/make_golden.py

One folder a case of tests/small_models.py: config.json, model.safetensors, and record.safetensors with the input
ids and pixels, the stages, and the greedy answer; its metadata names the versions that made it. Beside them,
inputs/ has what its image processor makes of images (pixels.safetensors) and its processor of prompts (prompts.json,
with the tokenizer of tools/tokenizer_model.py). Needs the `parity` extra. Only a change of the cases or of the
parity target is a reason to run it again.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import random_checkpoint
import torch
import transformers
import transformers_stages
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from tool_help import help_of
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import small_models  # noqa: E402 - lies beside the tests

PROMPTS = (
    "caption en",
    "",
    " ",
    " caption en",
    "caption en\n",
    "a  b   c",
    "detect cat ; dog",
    "answer en how many 123 cats?",
    "<loc0001><loc1023> x <seg003>",
    "<image><image>compare",
    "<image> and this",
    "naïve 猫 🐈\ttab\n\nlines",
)
WHOLE = ("base", "odd_heads", "two_images")  # every stage; elsewhere each layer's end, which the rest leads to


def wanted(case: str, stage: str) -> bool:
    """Which stages a record keeps."""
    return case in WHOLE or stage.endswith("/out") or "/" not in stage or stage.endswith("norm")


def make(case_name: str, folder: Path, checkpoint: Path) -> int:
    """Write one case, its model made in `checkpoint`; the number of stages it keeps."""
    case = small_models.CASES[case_name]
    small_models.write_folder(checkpoint, case)
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, folder)
    inputs = small_models.make_inputs(case)
    model = transformers_stages.load_model(checkpoint)
    stages = transformers_stages.record(
        model, inputs.pixel_values, inputs.ids, inputs.prefix_length, lambda stage: wanted(case_name, stage)
    )
    record = {f"stage/{name}": np.ascontiguousarray(value) for name, value in stages.items()}
    if not case.causal:  # Transformers' generate() marks every prompt as prefix
        prompt = inputs.ids[: inputs.prompt_length]
        answer = transformers_stages.generate(
            model, inputs.pixel_values, prompt, small_models.MAX_NEW_TOKENS, use_cache=small_models.has_window(case)
        )
        record["answer"] = np.array(answer, np.int64)
    record["input/ids"] = np.array(inputs.ids, np.int64)
    record["input/pixel_values"] = inputs.pixel_values
    lengths = {"prefix_length": str(inputs.prefix_length), "prompt_length": str(inputs.prompt_length)}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__}
    write_record(folder / "record.safetensors", record, {"format": "pg2ref-golden/1", **lengths, **versions})
    return len(stages)


def write_record(path: Path, record: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a record, unless it is there already: safetensors puts metadata in another order each time."""
    if path.is_file():
        with safe_open(path, "np") as stored:
            old = {name: stored.get_tensor(name).tobytes() for name in stored.keys()}  # noqa: SIM118 - no mapping
            if stored.metadata() == metadata and old == {name: value.tobytes() for name, value in record.items()}:
                return
    save_file(record, path, metadata)


def make_pixels(folder: Path) -> None:
    """Images of awkward sizes, and the pixel values of each at two resolutions."""
    rng = np.random.default_rng(3)
    record = {}
    for height, width in ((47, 61), (17, 90), (28, 28), (211, 300), (1, 5)):  # wide: tall ones depend on Pillow
        smooth = np.linspace(0, 255, width)[None, :, None] * rng.uniform(0, 1, (height, 1, 3))
        image = np.clip(smooth + rng.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)
        record[f"image/{height}x{width}"] = image
        for side in (28, 56):
            processor = SiglipImageProcessorPil(size={"height": side, "width": side})
            values = processor(images=Image.fromarray(image), return_tensors="np")["pixel_values"]
            record[f"pixel_values/{height}x{width}/{side}"] = values[0]
    save_file(record, folder / "pixels.safetensors", {"transformers": transformers.__version__})


def make_prompts(folder: Path, checkpoint: Path) -> None:
    """Prompts, and the ids that the processor makes of them for one image or two."""
    random_checkpoint.write_checkpoint(checkpoint, random_checkpoint.released_config("small"))
    processor = transformers.AutoProcessor.from_pretrained(checkpoint, use_fast=False)
    image = Image.new("RGB", (56, 56))
    rows = []
    for prompt in PROMPTS:
        for num_images in (1, 2):
            marks = prompt.count("<image>")
            if marks in (0, num_images):
                output = processor(images=[[image] * num_images], text=[prompt], return_tensors="np")
                rows.append({"prompt": prompt, "images": num_images, "ids": output["input_ids"][0].tolist()})
    content = {"transformers": transformers.__version__, "image_tokens": 16, "rows": rows}
    (folder / "prompts.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


@click.command(help=help_of(__doc__))
def main() -> None:
    """Make all cases."""
    transformers.logging.set_verbosity_error()  # its advice is about released checkpoints
    transformers.logging.disable_progress_bar()
    inputs = ROOT / "tests" / "golden" / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    make_pixels(inputs)
    with tempfile.TemporaryDirectory() as checkpoint:
        make_prompts(inputs, Path(checkpoint))
    for case_name in small_models.CASES:
        folder = ROOT / "tests" / "golden" / case_name
        with tempfile.TemporaryDirectory() as checkpoint:
            click.echo(f"{case_name}: {make(case_name, folder, Path(checkpoint))} stages")


if __name__ == "__main__":
    main()
