"""Records Transformers' PaliGemma 2 in this project's trace format, by hooks, without a change to the model.

    python tools/record_transformers.py /data/paligemma2-3b-mix-224 photo.jpg --dtype bf16 -o theirs.safetensors
    pg2ref trace photo.jpg -m /data/paligemma2-3b-mix-224 --with-floor -o truth.safetensors
    pg2ref compare truth.safetensors theirs.safetensors

Both start from the same pixel values and ids, those of pg2ref. Stages are written as the model runs. Attention is
Transformers' default, sdpa for the image, whose weights cannot be seen, and eager for the text. Needs the `parity`
extra, and memory for the model in its type.
"""

import json
from pathlib import Path

import click
import numpy as np
import torch
import transformers
import transformers_stages
from tool_help import help_of

import pg2ref
from pg2ref.config import read_config
from pg2ref.parity.trace_file import FullWriter, StatsWriter, file_behind
from pg2ref.recording.facts import RunFacts
from pg2ref.recording.record import choose_points, most_stages

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def as_stored(value: torch.Tensor) -> np.ndarray:
    """The numbers in their own type; bf16 as its bits."""
    value = value.detach().contiguous()
    return value.view(torch.int16).numpy().view(np.uint16) if value.dtype == torch.bfloat16 else value.numpy()


def record(folder: Path, images: list[Path], prompt: str, dtype: str, writer: FullWriter | StatsWriter) -> None:
    """Run the folder's model on images and prompt, and write what its stages compute."""
    ours = pg2ref.load(folder, precision="f32", backend="numpy")
    prepared = ours.prepare(images, prompt)
    model = transformers_stages.load_model(folder, DTYPES[dtype], vision_attention="sdpa")

    def keep(stage: str, value: torch.Tensor) -> None:
        if writer.wants(stage):
            writer(stage, as_stored(value))

    logits = transformers_stages.run(
        model,
        np.stack(prepared.pixel_values),
        prepared.prompt_ids,
        len(prepared.prompt_ids),
        keep,
        logits_to_keep=1,
    )
    facts = RunFacts(
        model=ours.described | {"dtype": dtype, "backend": "transformers"},
        config=ours.config,
        policy=ours.policy,
        images=prepared.images,
        pixel_values=prepared.pixel_values,
        prompt=prompt,
        prompt_ids=prepared.prompt_ids,
        answer_ids=[int(logits[-1].argmax())],
    )
    metadata = facts.to_metadata()
    libraries = {"transformers": transformers.__version__, "torch": torch.__version__}
    metadata["versions"] = json.dumps(json.loads(metadata["versions"]) | libraries)
    writer.finish(metadata, facts.input_ids)


@click.command(help=help_of(__doc__))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-p", "--prompt", default="caption en", show_default=True)
@click.option("-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="f32", show_default=True)
@click.option("--points", default="all", show_default=True, help="As in `pg2ref trace`.")
@click.option("--mode", type=click.Choice(["full", "stats"]), default="full", show_default=True)
def main(folder: Path, images: tuple[Path, ...], prompt: str, out: Path, dtype: str, points: str, mode: str) -> None:
    """Record, and say what was written."""
    transformers.logging.disable_progress_bar()
    wanted, out = choose_points(points), file_behind(out)
    if mode == "stats":
        writer = StatsWriter(out, wanted)
        record(folder, list(images), prompt, dtype, writer)
    else:
        most = most_stages(read_config(folder / "config.json"), len(images), steps=0)
        with FullWriter(out, wanted, most) as writer:
            record(folder, list(images), prompt, dtype, writer)
    click.echo(f"{out}: {len(writer.recorded)} stages in {dtype}, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
