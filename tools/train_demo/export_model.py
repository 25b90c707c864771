"""Writes the trained model as a checkpoint folder in the released layout: bf16, with tokenizer and mask decoder.

    python tools/train_demo/export_model.py build/demo out/pg2ref-shapes

Reads `joint/state.pt` as it is at that moment; training may go on meanwhile.
"""

import shutil
from pathlib import Path

import click
import random_checkpoint
import torch
from architecture import model_config
from language import export_table
from released_json import preprocessor_config
from train_joint import Joint
from vocabulary import FIRST_LOCATION, VOCAB_SIZE, write_tokenizer

from pg2ref.arrays import f32_to_bf16
from pg2ref.checkpoint.safetensors_writer import Planned, new_tensor_file
from pg2ref.checkpoint.tensor_table import canonical_name, expected_shapes
from pg2ref.checkpoint.vae_npz import VAE_NAME
from pg2ref.config import parse_config


def export(joint: Joint, mask_decoder: Path, folder: Path) -> None:
    """Write the folder, its weights last."""
    config_json = model_config(FIRST_LOCATION, VOCAB_SIZE)
    config = parse_config(config_json)
    write_tokenizer(folder)
    random_checkpoint.write_json(folder / "config.json", config_json)
    random_checkpoint.write_json(folder / "preprocessor_config.json", preprocessor_config(config))
    generation = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    random_checkpoint.write_json(folder / "generation_config.json", generation)
    shutil.copy(mask_decoder, folder / VAE_NAME)
    export_table(joint.model, joint.locations)
    trained = {canonical_name(name): tensor for name, tensor in joint.model.state_dict().items()}
    tensors = {
        random_checkpoint.released_name(name): f32_to_bf16(trained[name].numpy()).reshape(shape)
        for name, shape in expected_shapes(config).items()
    }
    planned = {name: Planned(bits.dtype, bits.shape) for name, bits in tensors.items()}
    with new_tensor_file(folder / "model.safetensors", planned) as write:
        for name, bits in tensors.items():
            write(name, bits)


def export_run(folder: Path, out: Path) -> int:
    """Export the weights that a run stands at; returns its step."""
    joint = Joint()
    state = torch.load(folder / "joint" / "state.pt", weights_only=True)
    joint.load_state_dict(state["parts"]["joint"])
    export(joint, folder / "mask_vae" / VAE_NAME, out)
    step: int = state["step"]
    return step


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path, out: Path) -> None:
    """Load, export, say how large it is."""
    step = export_run(folder, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    click.echo(f"{out}: step {step}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
