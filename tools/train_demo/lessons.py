"""What the language model learns from, in stages 2 and 3: scenes, and questions about them."""

from pathlib import Path
from typing import NamedTuple

from mask_vae import MaskVae, read_exported
from options import Options
from processes import rank, world
from questions import PER_SCENE, Batch, batches
from scene_store import Scenes, draw, training_shard
from seeds import FIRST_FOR_TRAINING, VALIDATION
from torch import Tensor
from vocabulary import write_tokenizer

from pg2ref.checkpoint.vae_npz import VAE_NAME


class Lesson(NamedTuple):
    """The scenes of a batch, and the questions about them."""

    scenes: Scenes
    batch: Batch

    def of_questions(self, of_scenes: Tensor) -> Tensor:
        """What is known of each scene, for each question. Its gradient is summed in one order, whatever threads do."""
        return of_scenes.index_select(0, self.batch.scene_Q)


class Lessons:
    """Where lessons come from, and those to measure with."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder, self.options = folder, options
        self.tokenizer = write_tokenizer(folder / "model")
        self.vae: MaskVae = read_exported(folder / "mask_vae" / VAE_NAME)
        self.held_out: Scenes = draw(VALIDATION[: options.validation], self.vae)
        asked = batches(self.held_out, self.tokenizer, options.batch_size, VALIDATION.start, 0)
        self.judging = [Lesson(self.held_out.take(batch.rows_S), batch) for batch in asked]

    @property
    def questions(self) -> int:
        """In a lesson."""
        return self.options.batch_size * PER_SCENE

    def of_shard(self, number: int) -> list[Lesson]:
        """The lessons of this process in the shard that is read as the n-th."""
        reading = number * world() + rank()
        scenes = training_shard(self.folder, reading, self.options.scenes, self.vae)
        asked = batches(scenes, self.tokenizer, self.options.batch_size, FIRST_FOR_TRAINING + reading, number)
        return [Lesson(scenes.take(batch.rows_S), batch) for batch in asked]
