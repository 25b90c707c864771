"""From what the user calls a model to its checkpoint, whatever it is stored as."""

from pathlib import Path

from pg2ref.checkpoint.big_vision import load_big_vision, read_big_vision_config
from pg2ref.checkpoint.loader import Checkpoint, load_checkpoint
from pg2ref.checkpoint.locate import BIG_VISION_SUFFIX, locate
from pg2ref.config import PaliGemmaConfig, read_config


def open_checkpoint(name: str | Path) -> Checkpoint:
    """Locate and load a checkpoint: a folder, a name in the cache, or an .npz of big_vision.

    Raises:
        ModelNotAvailableError: there is nothing under that name.
        CheckpointError: the files contradict each other.
    """
    found = locate(name)
    return load_big_vision(found) if found.suffix == BIG_VISION_SUFFIX and found.is_file() else load_checkpoint(found)


def open_config(name: str | Path) -> tuple[Path, PaliGemmaConfig]:
    """The folder that a checkpoint's tokenizer lies in, and its config, without its weights."""
    found = locate(name)
    if found.suffix == BIG_VISION_SUFFIX and found.is_file():
        return found.parent, read_big_vision_config(found)
    return found, read_config(found / "config.json")
