"""How an answer is asked for: the options that one answer, a stream, a batch of them and the command line share."""

from dataclasses import dataclass

from pg2ref.errors import UsageError
from pg2ref.generation.sampling import Sampler, make_sampler

MOST_NEW_TOKENS = 8192
MOST_BEAMS = 64


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Checked when made.

    Attributes:
        max_new_tokens: stop after so many.
        temperature: 0 takes the best token each time; above, tokens are drawn at random.
        top_k: draw from so many best tokens.
        top_p: draw from the best tokens that hold this share of the probability.
        seed: of the random numbers.
        beams: above 1, beam search; nothing is streamed before it ends.
        logprobs: how many of the likeliest tokens to report in each place.
        use_cache: False computes everything anew for each token, for checking.

    Raises:
        UsageError: a value out of range, or two that make no sense together.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    beams: int = 1
    logprobs: int = 0
    use_cache: bool = True

    def __post_init__(self) -> None:
        self.sampler()
        if not 1 <= self.max_new_tokens <= MOST_NEW_TOKENS:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}, expected 1 to {MOST_NEW_TOKENS}")
        if not 1 <= self.beams <= MOST_BEAMS:
            raise UsageError(f"beams is {self.beams}, expected 1 to {MOST_BEAMS}")
        if self.beams > 1 and (self.temperature > 0 or not self.use_cache):
            raise UsageError("beam search draws nothing and needs its cache: leave out temperature and no-cache")
        if self.logprobs < 0:
            raise UsageError(f"logprobs is {self.logprobs}, expected 0 or more")

    def sampler(self) -> Sampler:
        """A fresh one: each answer draws from the seed on."""
        return make_sampler(self.temperature, self.top_k, self.top_p, self.seed)
