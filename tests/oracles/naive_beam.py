"""Beam search by the rule of big_vision's predict_fns.py (`_beam_decode`), over plain tuples.

A function scores the next token.

live = {[]: 0}; best = none
each step: best = argmax over (best so far, every live beam + an end token, scores with the end token's)
           each beam -> its top n + 1 tokens; end tokens never go on; keep the n best of all
           stop when the best live score < the best finished one, or after `max_tokens` steps
"""

from collections.abc import Callable, Sequence
from itertools import product

Answer = tuple[int, ...]
Scorer = Callable[[Answer], Sequence[float]]  # log-probabilities of every token after these


def beam_search(scorer: Scorer, end_ids: Sequence[int], num_beams: int, max_tokens: int) -> tuple[float, Answer]:
    live: dict[Answer, float] = {(): 0.0}
    best_score, best = float("-inf"), ()
    for _ in range(max_tokens):
        grown: dict[Answer, float] = {}
        for tokens, score in live.items():
            row = scorer(tokens)
            for end_id in end_ids:
                if score + row[end_id] > best_score:
                    best_score, best = score + row[end_id], (*tokens, end_id)
            top = sorted((i for i in range(len(row)) if i not in end_ids), key=lambda i: -row[i])[: num_beams + 1]
            grown |= {(*tokens, i): score + row[i] for i in top}
        kept = sorted(grown, key=lambda tokens: -grown[tokens])[:num_beams]
        live = {tokens: grown[tokens] for tokens in kept}
        if max(live.values()) < best_score:
            break
    return best_score, best


def best_of_all(scorer: Scorer, end_ids: Sequence[int], vocab_size: int, max_tokens: int) -> tuple[float, Answer]:
    """The truth that beam search looks for: every answer of at most `max_tokens`, its end included."""
    going_on = [i for i in range(vocab_size) if i not in end_ids]
    best_score, best = float("-inf"), ()
    for length in range(max_tokens):
        for start in product(going_on, repeat=length):
            score = sum(scorer(start[:place])[token] for place, token in enumerate(start))
            for end_id in end_ids:
                if score + scorer(start)[end_id] > best_score:
                    best_score, best = score + scorer(start)[end_id], (*start, end_id)
    return best_score, best
