"""Checks that a checkpoint wants its images prepared the way inputs/image.py prepares them.

Nothing is read from preprocessor_config.json (or processor_config.json, its name in re-saved folders) but the
question whether it agrees: a fine-tune with another mean or size would otherwise be silently wrong.
"""

from pathlib import Path
from typing import Any

from pg2ref.config import PaliGemmaConfig, read_json_object
from pg2ref.errors import ConfigError, brief

BICUBIC = 3  # Pillow's number
HALF = [0.5, 0.5, 0.5]


def check_preprocessor(folder: Path, config: PaliGemmaConfig) -> None:
    """Raises ConfigError where the folder's image processor does something else than this project."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if path.is_file():
            fields = read_json_object(path)
            _check(fields.get("image_processor", fields), config, name)


def _check(fields: Any, config: PaliGemmaConfig, where: str) -> None:
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: image_processor is no object")
    side = config.vision.image_size
    expected: dict[str, tuple[Any, ...]] = {
        "size": ({"height": side, "width": side},),
        "image_seq_length": (config.vision.num_image_tokens,),
        "image_mean": (HALF,),
        "image_std": (HALF,),
        "resample": (BICUBIC,),
        "do_resize": (True,),
        "do_rescale": (True,),
        "do_normalize": (True,),
        "do_center_crop": (False,),
        "do_pad": (False,),
    }
    for name, values in expected.items():
        if fields.get(name) is not None and fields[name] not in values:
            raise ConfigError(
                f"{where}: {name} is {brief(fields[name])}, expected {values[0]!r}: pg2ref prepares images as the "
                "released checkpoints do, and this one was trained otherwise or its files are mixed up"
            )
    factor = fields.get("rescale_factor")
    if factor is not None and factor != 1 / 255:
        raise ConfigError(f"{where}: rescale_factor is {brief(factor)}, expected 1/255")
