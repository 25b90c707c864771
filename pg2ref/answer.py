"""An answer in the making: tokens as they are chosen, and all that is known of it at the end."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pg2ref.arrays import Array
from pg2ref.config import PaliGemmaConfig
from pg2ref.demo.familiarity import Familiarity
from pg2ref.errors import UsageError
from pg2ref.generation.beam import beam_search
from pg2ref.generation.generate import TokenEvent, generate
from pg2ref.generation.options import AnswerOptions
from pg2ref.inputs.image import Picture
from pg2ref.inputs.tokenizer import IncrementalDetokenizer, Tokenizer
from pg2ref.model.paligemma import PaliGemma, encode_images
from pg2ref.model.vqvae import MaskDecoder
from pg2ref.outputs.objects import find_objects
from pg2ref.outputs.result import Alternative, InputImage, Result, Timing, Token
from pg2ref.policy import Policy
from pg2ref.recording.facts import RunFacts
from pg2ref.trace import Guard, Tap, no_tap

Computed = TypeVar("Computed")


@dataclass(frozen=True)
class Prepared:
    """Images and prompt as the model reads them."""

    images: tuple[InputImage, ...]
    pixel_values: list[Array]  # pixel_values_CYX of each image
    prompt: str
    prompt_ids: list[int]
    picture: Picture  # the first image, upright, in RGB


@dataclass(frozen=True)
class StreamEvent:
    """A token and the text that has become certain with it: an unfinished UTF-8 sequence waits for its end."""

    token: TokenEvent
    text: str


class Answering(Protocol):
    """What an answer needs of the model that gives it (api.py, Model)."""

    config: PaliGemmaConfig
    tokenizer: Tokenizer
    numbers: PaliGemma
    policy: Policy
    described: dict[str, Any]
    load_seconds: float
    mask_decoder: MaskDecoder | None
    familiarity: Familiarity | None

    def compute(self, computation: Callable[[], Computed]) -> Computed:
        """Run a piece of a forward pass."""
        ...

    def about(self, prepared: Prepared) -> dict[str, Any]:
        """What every outcome says."""
        ...


class Answer:
    """An answer in the making. Iterate once; `result()` is complete afterwards."""

    def __init__(self, model: Answering, prepared: Prepared, options: AnswerOptions, tap: Tap = no_tap) -> None:
        self.model, self.prepared, self.options = model, prepared, options
        self._tap = Guard(tap)
        self._begun = False
        self._detokenizer = IncrementalDetokenizer(model.tokenizer)
        self.events: list[TokenEvent] = []
        self.text = ""
        self.vision_seconds = 0.0
        self.warnings = warnings_about(model, prepared, options.max_new_tokens)

    def __iter__(self) -> Iterator[StreamEvent]:
        """Compute, and yield each token as soon as it is chosen.

        Raises:
            UsageError: the second time.
        """
        if self._begun:
            raise UsageError("an answer is computed once, while it is iterated over: ask the model again")
        self._begun = True
        events = self.model.compute(self._start)
        while (event := self.model.compute(lambda: next(events, None))) is not None:
            yield self.add(event)

    def add(self, event: TokenEvent) -> StreamEvent:
        """Take the next token, made by `__iter__` or beside other answers (batch/run.py)."""
        self.events.append(event)
        ended = event.finish_reason == "stop"
        piece = "" if ended else self._detokenizer.feed(event.token_id)
        if event.finish_reason:
            piece += self._detokenizer.flush()
        self.text += piece
        return StreamEvent(event, piece)

    def look(self) -> Array:
        """Run the vision tower; the embeddings of all images."""
        started = time.perf_counter()
        embeddings_ID = encode_images(self.model.numbers, self.prepared.pixel_values, tap=self._tap)
        self.vision_seconds = time.perf_counter() - started
        if self.model.familiarity is not None:
            self.warnings += self.model.familiarity.warnings(embeddings_ID, len(self.prepared.images))
        return embeddings_ID

    def _start(self) -> Iterator[TokenEvent]:
        numbers, options = self.model.numbers, self.options
        embeddings_ID = self.look()
        shared: dict[str, Any] = {
            "max_new_tokens": options.max_new_tokens,
            "num_alternatives": options.logprobs,
            "tap": self._tap,
        }
        prompt_ids = self.prepared.prompt_ids
        if options.beams > 1:
            return iter(beam_search(numbers, embeddings_ID, prompt_ids, num_beams=options.beams, **shared))
        return generate(
            numbers, embeddings_ID, prompt_ids, sampler=options.sampler(), use_cache=options.use_cache, **shared
        )

    def run_facts(self) -> RunFacts:
        """What a trace says of the run so far."""
        model, prepared = self.model, self.prepared
        return RunFacts(
            model=model.described,
            config=model.config,
            policy=model.policy,
            images=prepared.images,
            pixel_values=prepared.pixel_values,
            prompt=prepared.prompt,
            prompt_ids=prepared.prompt_ids,
            answer_ids=[event.token_id for event in self.events],
        )

    def result(self) -> Result:
        """Everything about the answer so far."""
        tokenizer, prepared = self.model.tokenizer, self.prepared
        decode_seconds = sum(event.seconds for event in self.events[1:])
        objects, problems = find_objects(
            self.text,
            [(tokenizer.piece(event.token_id), event.logprob) for event in self.events],
            prepared.picture.size,
            self.model.policy.loc_scale,
            self.model.mask_decoder,
        )
        return Result(
            **self.model.about(prepared),
            text=self.text,
            objects=objects,
            problems=problems,
            finish_reason=self.events[-1].finish_reason if self.events else None,
            tokens=tuple(
                Token(
                    event.token_id,
                    tokenizer.piece(event.token_id),
                    event.logprob,
                    tuple(
                        Alternative(other.token_id, tokenizer.piece(other.token_id), other.logprob)
                        for other in event.alternatives
                    ),
                )
                for event in self.events
            ),
            timing=Timing(
                load_s=self.model.load_seconds,
                vision_s=self.vision_seconds,
                prefill_s=self.events[0].seconds if self.events else 0.0,
                decode_s=decode_seconds,
                decode_tok_s=(len(self.events) - 1) / decode_seconds if decode_seconds else None,
            ),
            warnings=self.warnings,
            picture=prepared.picture,
        )


def warnings_about(model: Answering, prepared: Prepared, max_new_tokens: int) -> tuple[str, ...]:
    """What is odd about a prompt and its length."""
    found = []
    most = model.config.text.max_position_embeddings
    if len(prepared.prompt_ids) + max_new_tokens > most:
        found.append(f"the prompt and max_new_tokens together pass the {most} positions the model was made for")
    if prepared.prompt.endswith("\n"):
        found.append("the prompt ends with a newline; one is added anyway, and two are another token than one")
    return tuple(found)
