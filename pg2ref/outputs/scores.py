"""Scored continuations with everything needed to trust them, and their JSON form `pg2ref/score/1`.

Fields are only ever added within a version of the schema.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from pg2ref.outputs.result import InputImage, input_fields

SCHEMA = "pg2ref/score/1"


@dataclass(frozen=True)
class ScoredToken:
    """A token of a continuation and its log-probability behind those before it."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Continuation:
    """A given answer; the end-of-text token is among its tokens unless it was left out."""

    text: str
    tokens: tuple[ScoredToken, ...]

    @property
    def logprob(self) -> float:
        """Of the whole: the sum over its tokens."""
        return sum(token.logprob for token in self.tokens)

    @property
    def perplexity(self) -> float:
        """The inverse of the geometric mean of its tokens' probabilities; its logarithm is Transformers' loss."""
        return math.exp(-self.logprob / len(self.tokens))


@dataclass(frozen=True)
class Scores:
    """What `Model.score` returns."""

    model: dict[str, Any]  # as in a Result, and so are the following
    images: tuple[InputImage, ...]
    prompt: str
    prompt_ids: tuple[int, ...]
    num_image_tokens: int
    continuations: tuple[Continuation, ...]  # in the order in which they were given
    policy: dict[str, Any]
    warnings: tuple[str, ...]
    versions: dict[str, str]

    def ranked(self) -> list[Continuation]:
        """The likeliest first; of equals, the one that was given first."""
        return sorted(self.continuations, key=lambda one: -one.logprob)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object as Python values."""
        fields = asdict(self)
        fields["continuations"] = [
            {**asdict(one), "logprob": one.logprob, "perplexity": one.perplexity} for one in self.continuations
        ]
        return {"schema": SCHEMA, "model": fields.pop("model"), "input": input_fields(fields), **fields}

    def to_json(self) -> str:
        """One line of JSON in ASCII."""
        return json.dumps(self.to_dict())
