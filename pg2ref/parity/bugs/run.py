"""What one forward pass depends on, in one record, and the small changes that bugs are made of."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from pg2ref.arrays import Array
from pg2ref.inputs.image import Picture
from pg2ref.model.paligemma import PaliGemma

Kind = Literal["prompt", "pixels", "vision", "merge", "decoder", "logits"]  # of blocks: parity/blocks.py


class Run(NamedTuple):
    """A model and its prepared inputs.

    `answer_ids` are read behind the prompt (teacher forcing); mostly there are none. `pictures` are the images before
    resizing; without them a bug of resizing changes nothing.
    """

    model: PaliGemma
    pixel_values: tuple[Array, ...]  # pixel_values_CYX of each image
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()
    in_steps: bool = False  # the answer is read token by token
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Bug:
    """One mistake.

    `shows_in` are the blocks that compute something else with it on the same input. `seen` are the public places
    where it happened, GitHub threads as `owner/name#number` or files; where it is empty none was found, and the
    mistake is the mirror image of one that was.
    """

    name: str
    summary: str
    shows_in: tuple[Kind, ...]
    seen: tuple[str, ...]
    inject: Callable[[Run], Run]

    @property
    def links(self) -> tuple[str, ...]:
        """Addresses of the threads, and the files as they are named; GitHub leads on from issues to pull requests."""
        return tuple(
            "https://github.com/{}/issues/{}".format(*place.split("#")) if "#" in place else place
            for place in self.seen
        )


def with_operations(run: Run, **operations: Callable[..., Any]) -> Run:
    """The same run with other entries in its table of operations."""
    return run._replace(model=run.model._replace(ops=run.model.ops._replace(**operations)))


def with_text_fields(run: Run, **changed: Any) -> Run:
    """The same run with other fields in the decoder's config."""
    config = run.model.config
    return run._replace(model=run.model._replace(config=replace(config, text=replace(config.text, **changed))))


def with_language_model(run: Run, **changed: Any) -> Run:
    """The same run with other weights in the decoder."""
    params = run.model.params
    changed_params = params._replace(language_model=params.language_model._replace(**changed))
    return run._replace(model=run.model._replace(params=changed_params))
