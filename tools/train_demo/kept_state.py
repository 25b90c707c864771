"""The joint stage's weights, heads included, in bf16 beside the code: enough to go on from on any machine.

    python tools/train_demo/kept_state.py restore build/demo     # then train_joint.py build/demo goes on from there
    python tools/train_demo/kept_state.py keep build/demo        # after training: replaces what is kept

The moments of the optimisers are not kept, and the schedule begins anew.
"""

import shutil
from pathlib import Path

import click
import torch
from optimiser import Optimiser
from run import Run
from safetensors.torch import load_file, save_file
from train_joint import DEFAULTS, Joint

from pg2ref.checkpoint.vae_npz import VAE_NAME

KEPT = Path(__file__).parent / "state"
WEIGHTS_NAME = "joint.safetensors"
TIED = "model.lm_head.weight"  # the embedding table again


def keep(folder: Path, kept: Path) -> int:
    """Round the weights of a run to bf16 and put them away; returns the step they were at."""
    state = torch.load(folder / "joint" / "state.pt", weights_only=True)
    weights = {name: value.bfloat16() for name, value in state["parts"]["joint"].items() if name != TIED}
    kept.mkdir(parents=True, exist_ok=True)
    save_file(weights, kept / "unfinished", {"step": str(state["step"])})
    (kept / "unfinished").replace(kept / WEIGHTS_NAME)
    shutil.copy(folder / "mask_vae" / VAE_NAME, kept / VAE_NAME)
    step: int = state["step"]
    return step


def restore(kept: Path, folder: Path) -> None:
    """Write a state at step 0 that the joint stage goes on from."""
    joint = Joint()
    weights = {name: value.float() for name, value in load_file(kept / WEIGHTS_NAME).items()}
    joint.load_state_dict(weights | {TIED: weights["model.model.language_model.embed_tokens.weight"]})
    (folder / "mask_vae").mkdir(parents=True, exist_ok=True)
    shutil.copy(kept / VAE_NAME, folder / "mask_vae" / VAE_NAME)
    optimiser = Optimiser(joint.groups(), DEFAULTS.highest_rate, DEFAULTS.muon_rate)
    run = Run(folder / "joint", {"joint": joint, "optimiser": optimiser})
    if not run.is_new:
        raise click.ClickException(f"{folder / 'joint'} holds a run already: name another folder, or go on with it")
    run.save()


@click.group(help=__doc__)
def main() -> None:
    """Two ways."""


@main.command("keep")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--kept", default=KEPT, type=click.Path(file_okay=False, path_type=Path), show_default=False)
def keep_command(folder: Path, kept: Path) -> None:
    """Put the weights of a run away."""
    click.echo(f"{kept / WEIGHTS_NAME}: step {keep(folder, kept)}")


@main.command("restore")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--kept", default=KEPT, type=click.Path(exists=True, file_okay=False, path_type=Path), show_default=False)
def restore_command(folder: Path, kept: Path) -> None:
    """Begin a run from what was put away."""
    restore(kept, folder)


if __name__ == "__main__":
    main()
