"""How likely given answers are: their log-probabilities, token by token, none of them generated.

The prompt is read once; each continuation is then read behind it in one go (teacher forcing), and the cache goes back
to the prompt's end. The mean over a continuation's tokens, with its sign turned, is the loss that Transformers computes
for these labels.
"""

from collections.abc import Sequence

from pg2ref.arrays import Array
from pg2ref.errors import UsageError
from pg2ref.generation.sampling import log_probabilities
from pg2ref.model.paligemma import PaliGemma, follow, prefill
from pg2ref.trace import Prefixed, Tap, no_tap

ROWS_AT_ONCE = 64  # of logits: 66 MB with 257,216 tokens


def score(
    model: PaliGemma,
    image_embeddings_ID: Array,
    prompt_ids: Sequence[int],
    continuations: Sequence[Sequence[int]],
    *,
    tap: Tap = no_tap,
) -> list[list[float]]:
    """The log-probability of each token of each continuation, behind what stands before it.

    Stages of reading continuation i begin with `continuation_i/`.

    Raises:
        UsageError: there is no continuation, or one without tokens.
    """
    if not continuations or not all(continuations):
        raise UsageError("nothing to score: expected one continuation or more, each of one token or more")
    length = len(prompt_ids)
    cache = model.empty_cache(length + max(map(len, continuations)) - 1, length)
    first_V = log_probabilities(prefill(model, image_embeddings_ID, prompt_ids, cache, tap=tap))
    scored = []
    for i, ids in enumerate(continuations):
        logprobs = [float(first_V[ids[0]])]
        for start in range(0, len(ids) - 1, ROWS_AT_ONCE):
            read, asked = ids[start : len(ids) - 1][:ROWS_AT_ONCE], ids[start + 1 :]
            logits_TV = follow(model, read, cache, tap=Prefixed(tap, f"continuation_{i}/"))
            rows = zip(logits_TV, asked, strict=False)  # as many as were read
            logprobs += [float(log_probabilities(logits_V)[token_id]) for logits_V, token_id in rows]
        cache.rewind(length)
        scored.append(logprobs)
    return scored
