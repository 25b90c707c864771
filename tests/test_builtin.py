"""The checkpoint in the package: it is the default, it sees, it says what it is, it knows what it was not made for."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pg2ref
from pg2ref.arrays import Array
from pg2ref.demo import builtin
from pg2ref.demo.familiarity import Familiarity, read_familiarity
from pg2ref.demo.scene import draw_scene
from pg2ref.demo.tasks import colour_questions

ROOT = Path(__file__).parent.parent
MOST_BYTES = 12_000_000


@pytest.fixture(scope="module")
def model() -> pg2ref.Model:
    return pg2ref.load()


def scene_picture(seed: int) -> Image.Image:
    return Image.fromarray(draw_scene(seed).pixels_YXC)


def photograph_like(seed: int) -> Array:
    """Coloured noise whose power falls with the square of the frequency, as that of photographs does."""
    rng = np.random.default_rng(seed)
    spectrum_YXC = np.fft.rfft2(rng.normal(size=(224, 224, 3)), axes=(0, 1))
    frequency_YX = np.hypot(np.fft.fftfreq(224)[:, None], np.fft.rfftfreq(224))
    frequency_YX[0, 0] = 1
    pixels_YXC = np.fft.irfft2(spectrum_YXC / frequency_YX[..., None], axes=(0, 1))
    return np.clip(128 + 60 * pixels_YXC / pixels_YXC.std(), 0, 255).astype(np.uint8)


def test_the_package_holds_a_whole_checkpoint() -> None:
    names = {path.name for path in builtin.FOLDER.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "vae-oid.npz",
        "familiarity.npz",
        "README.md",
    } <= names
    assert sum(path.stat().st_size for path in builtin.FOLDER.iterdir()) < MOST_BYTES
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["package-data"]["pg2ref.demo"] == ["checkpoint/*"]
    assert all(path.is_file() for path in builtin.FOLDER.iterdir())  # which that pattern takes along


@pytest.mark.parametrize("name", [None, "pg2ref-shapes", builtin.FOLDER])
def test_it_is_the_default_and_says_so(name: str | Path | None) -> None:
    described = pg2ref.load(name).described
    assert (described["id"], described["builtin"]) == ("pg2ref-shapes", True)
    assert (described["backend"], described["dtype"], described["weights"]) == ("numpy", "f32", "bf16")


def test_a_folder_of_its_name_does_not_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pg2ref-shapes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pg2ref.load("pg2ref-shapes").checkpoint.folder == builtin.FOLDER
    with pytest.raises(pg2ref.errors.CheckpointError, match="no config"):
        pg2ref.load("./pg2ref-shapes")


def test_a_copy_is_a_checkpoint_like_others(tmp_path: Path) -> None:
    copy = pg2ref.load(shutil.copytree(builtin.FOLDER, tmp_path / "copy"), backend="numpy")
    assert copy.described["builtin"] is False
    assert copy.generate(photograph_like(0), "ocr", max_new_tokens=1).warnings == ()


def test_the_kernels_answer_alike(model: pg2ref.Model) -> None:
    fast = pg2ref.load(backend="numba", precision="f32")
    for seed, prompt in ((3, "caption en"), (4, "ocr")):
        answers = [each.generate(scene_picture(seed), prompt, max_new_tokens=20) for each in (model, fast)]
        assert answers[0].token_ids == answers[1].token_ids


def test_it_sees(model: pg2ref.Model) -> None:
    """Colours, the task at which it was good first: of scenes that it was not trained on."""
    asked = [(seed, colour_questions(draw_scene(seed))) for seed in range(60, 90)]
    asked = [(seed, questions[0]) for seed, questions in asked if questions]
    assert len(asked) >= 20
    right = [model.generate(scene_picture(s), q.prompt, max_new_tokens=4).text == q.answer for s, q in asked]
    assert sum(right) >= 0.9 * len(right)


def test_it_warns_of_what_it_was_not_made_for(model: pg2ref.Model) -> None:
    scenes = [model.generate(scene_picture(seed), "ocr", max_new_tokens=1) for seed in range(40)]
    assert sum(bool(result.warnings) for result in scenes) <= 4
    for seed in range(8):
        (warning,) = model.generate(photograph_like(seed), "ocr", max_new_tokens=1).warnings
        assert warning.startswith("the image looks unlike the synthetic scenes")
    noise = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    assert model.generate(noise, "ocr", max_new_tokens=1).warnings


def test_the_warning_names_the_image(model: pg2ref.Model) -> None:
    pictures = [scene_picture(0), Image.fromarray(photograph_like(0)), scene_picture(1)]
    (warning,) = model.generate(pictures, "caption en", max_new_tokens=1).warnings
    assert warning.startswith("image 2 looks unlike")


def test_distance_is_that_of_mahalanobis(rng: np.random.Generator) -> None:
    mixing_DD = rng.normal(size=(5, 5))
    covariance_DD = mixing_DD @ mixing_DD.T
    familiarity = Familiarity(np.arange(5.0), np.linalg.inv(np.linalg.cholesky(covariance_DD)), np.float64(2.5))
    embeddings_ID = rng.normal(size=(7, 5))
    away_D = embeddings_ID.mean(0) - np.arange(5)
    expected = np.sqrt(away_D @ np.linalg.solve(covariance_DD, away_D)) / 2.5
    assert familiarity.distance(embeddings_ID) == pytest.approx(expected)
    for limit, said in ((2.6, 0), (2.4, 1)):
        changed = familiarity._replace(limit=np.float64(expected * limit))
        assert len(changed.warnings(embeddings_ID, 1)) == said


def test_its_statistics_fit_its_weights(model: pg2ref.Model) -> None:
    familiarity = read_familiarity(builtin.FOLDER)
    width = model.config.text.hidden_size
    assert familiarity.mean_D.shape == (width,)
    assert familiarity.whitening_DD.shape == (width, width)
    distances = []
    for seed in range(2000, 2030):
        prepared = model.prepare(scene_picture(seed), "ocr")
        from pg2ref.model.paligemma import encode_images

        distances.append(familiarity.distance(encode_images(model.numbers, prepared.pixel_values)))
    assert 0.3 < np.median(distances) < 1  # neither everything nor nothing is familiar


def test_it_is_never_called_paligemma() -> None:
    card = (builtin.FOLDER / "README.md").read_text(encoding="utf-8")
    assert "It is not PaliGemma" in " ".join(card.split())
    config = json.loads((builtin.FOLDER / "config.json").read_text(encoding="utf-8"))
    assert "_name_or_path" not in config
