"""Training of the built-in model: data come from the seed alone, runs go on where they stopped, exports are read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scene_examples
import seeds
from mask_crops import batches, crop, scene_masks

from pg2ref.demo.scene import draw_scene
from pg2ref.inputs.image import pixel_values

TRAIN = Path(__file__).parent.parent / "tools" / "train_demo" / "train_mask_vae.py"


def test_nothing_is_trained_on_what_it_is_judged_by() -> None:
    assert set(seeds.HELD_OUT).isdisjoint(seeds.VALIDATION)
    assert max(seeds.HELD_OUT[-1], seeds.VALIDATION[-1]) < seeds.FIRST_FOR_TRAINING
    assert len(seeds.HELD_OUT) == 2000


def test_examples_are_what_the_model_reads() -> None:
    made = [scene_examples.example(seed, 56) for seed in range(30)]
    assert {one.scene.size_px for one in made} == {56, 84, 112, 224}
    for one in made:
        assert one.pixel_values_CYX.shape == (3, 56, 56)
        assert one.tasks
    again = scene_examples.example(7, 56)
    assert (again.pixel_values_CYX == made[7].pixel_values_CYX).all()
    assert again.tasks == made[7].tasks
    from PIL import Image

    drawn = draw_scene(7, made[7].scene.size_px)
    assert (made[7].pixel_values_CYX == pixel_values(Image.fromarray(drawn.pixels_YXC), 56)).all()


def test_crops_fill_the_square() -> None:
    mask = np.ones((9, 17), bool)
    assert (crop(mask) == 1).all()
    mask[:, :8] = False
    assert (crop(mask)[:, :24] == -1).all()
    assert (crop(mask)[:, 40:] == 1).all()


def test_batches_go_on_from_where_they_stopped() -> None:
    expected = np.stack([crop(mask) for seed in range(100, 120) for mask in scene_masks(seed, 64)])
    stream = batches((100, 0), 64, 5)
    position, crops = next(stream)
    assert (crops == expected[:5]).all()
    assert (next(stream)[1] == expected[5:10]).all()
    assert (next(batches(position, 64, 7))[1] == expected[5:12]).all()


def train(folder: Path, *options: object) -> list[dict[str, float]]:
    """Run the script; what it logged."""
    command = [sys.executable, str(TRAIN), str(folder), "--batch-size", "4", "--size", "48", "--steps", "4"]
    subprocess.run([*command, *map(str, options)], check=True, capture_output=True, timeout=120)
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parity
def test_a_stopped_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    log = train(tmp_path / "whole")
    train(tmp_path / "halves", "--stop-after", 2)
    halves = train(tmp_path / "halves")
    assert [line["step"] for line in halves] == [2, 4]
    whole, resumed = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "halves"))
    assert whole["position"] == resumed["position"]
    assert log[-1]["step"] == whole["step"] == resumed["step"] == 4
    assert all(torch.equal(whole["vae"][name], resumed["vae"][name]) for name in whole["vae"])


@pytest.mark.parity
def test_what_is_exported_decodes_the_same_in_pg2ref(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from mask_vae import MaskVae, export, read_exported

    from pg2ref.checkpoint.vae_npz import read_mask_decoder
    from pg2ref.model.vqvae import decode_codes

    torch.manual_seed(0)
    export(MaskVae(20, 12, (16, 10, 8, 6)), tmp_path / "vae.npz")
    vae, decoder = read_exported(tmp_path / "vae.npz"), read_mask_decoder(tmp_path / "vae.npz")
    crops = np.stack([crop(mask) for mask in scene_masks(4, 112)])
    for codes in vae.encode(crops):
        with torch.no_grad():
            theirs = vae.decode(vae.codebook[torch.from_numpy(codes)])[0, 0].numpy()
        assert np.abs(decode_codes(decoder, codes) - theirs).max() < 1e-5 * max(np.abs(theirs).max(), 1)
