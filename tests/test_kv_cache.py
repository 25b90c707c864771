"""The cache is an optimisation of a plain function: step by step, together or forked, the numbers are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
from closeness import assert_close
from small_models import CASES

from pg2ref.arrays import Array
from pg2ref.errors import Pg2RefError
from pg2ref.model import backend, paligemma
from pg2ref.model.kv_cache import KVCache
from pg2ref.model.paligemma import PaliGemma
from pg2ref.policy import WINDOW_POLICIES

STEPS = 10
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache")
    small_models.write_folder(path, CASES["base"])
    return path


def start(model: PaliGemma, prompt: list[int], pixel_values: Array, capacity: int) -> tuple[Array, KVCache]:
    """Logits of the first answer token, and the cache that has read the prompt."""
    cache = model.empty_cache(capacity, len(prompt))
    embeddings = paligemma.encode_images(model, [pixel_values])
    return paligemma.prefill(model, embeddings, prompt, cache), cache


def prompt_and_answer(seed: int) -> tuple[list[int], list[int], Array]:
    inputs = small_models.make_inputs(CASES["base"], seed)
    answer = np.random.default_rng(seed).integers(3, 290, STEPS).tolist()
    return inputs.ids[: inputs.prompt_length], answer, inputs.pixel_values[0]


@DTYPES
@pytest.mark.parametrize("policy", WINDOW_POLICIES)
def test_cached_decoding_equals_computing_everything_anew(folder: Path, policy: str, dtype: Any) -> None:
    model = small_models.open_model(folder, dtype)._replace(window_policy=policy)
    prompt, answer, pixels = prompt_and_answer(5)
    window = model.config.text.sliding_window
    assert window is not None
    assert window < STEPS < len(prompt)  # the window leaves the prefix behind, and most of the answer
    logits_V, cache = start(model, prompt, pixels, len(prompt) + STEPS)
    stepped = [logits_V, *(paligemma.step(model, [token_id], [cache])[0] for token_id in answer)]
    embeddings = paligemma.encode_images(model, [pixels])
    whole_TV = paligemma.forward(model, embeddings, [*prompt, *answer], len(prompt))
    assert cache.length == len(prompt) + STEPS
    assert_close(np.stack(stepped), whole_TV[len(prompt) - 1 :], "decode", terms=1)


@DTYPES
def test_sequences_together_equal_each_alone(folder: Path, dtype: Any) -> None:
    """Matrix products of three rows and of one may add in another order: rounding, no more."""
    model = small_models.open_model(folder, dtype)
    cases = [prompt_and_answer(seed) for seed in (5, 6, 7)]
    cases[1][0].pop()  # of different lengths: their windows and positions differ
    cases[2][0].extend([17, 23])
    alone = []
    for prompt, answer, pixels in cases:
        _, cache = start(model, prompt, pixels, 40)
        alone.append([paligemma.step(model, [token_id], [cache])[0] for token_id in answer])
    caches = [start(model, prompt, pixels, 40)[1] for prompt, _, pixels in cases]
    for number, tokens in enumerate(zip(*(answer for _, answer, _ in cases), strict=True)):
        together_TV = paligemma.step(model, tokens, caches)
        assert_close(together_TV, np.stack([rows[number] for rows in alone]), "decode", terms=1)


def test_many_sequences_together_have_the_numbers_of_each_alone(folder: Path) -> None:
    """More than the kernels take at once, bit for bit."""
    model = small_models.open_model(folder)._replace(ops=backend.fast("f32"))
    prompt, _, pixels = prompt_and_answer(5)
    _, cache = start(model, prompt, pixels, 40)
    tokens = [3 + number for number in range(2 * paligemma.TOGETHER + 1)]
    alone = np.concatenate([paligemma.step(model, [token], [cache.fork()]) for token in tokens])
    together = paligemma.step(model, tokens, [cache.fork() for _ in tokens])
    np.testing.assert_array_equal(together, alone)


def test_prompts_of_equal_length_prefill_together(folder: Path) -> None:
    model = small_models.open_model(folder, np.float64)
    cases = [prompt_and_answer(seed) for seed in (5, 6)]
    length = len(cases[0][0])
    alone = [start(model, prompt, pixels, length)[0] for prompt, _, pixels in cases]
    caches = [model.empty_cache(length, length) for _ in cases]
    embeddings = [
        paligemma.embed_prefix(model, paligemma.encode_images(model, [pixels]), prompt) for prompt, _, pixels in cases
    ]
    assert_close(paligemma.read(model, np.concatenate(embeddings), caches), np.stack(alone), "decode", terms=1)


def test_a_fork_goes_its_own_way(folder: Path) -> None:
    model = small_models.open_model(folder)
    prompt, answer, pixels = prompt_and_answer(5)
    _, cache = start(model, prompt, pixels, len(prompt) + 3)
    paligemma.step(model, [answer[0]], [cache])
    twin = cache.fork()
    assert (twin.length, twin.prefix_length) == (cache.length, cache.prefix_length)
    frozen = cache.key_LSKH.copy(), cache.value_LSKH.copy()
    other = paligemma.step(model, [answer[2]], [twin])
    assert cache.length == len(prompt) + 1
    np.testing.assert_array_equal(cache.key_LSKH, frozen[0])
    np.testing.assert_array_equal(cache.value_LSKH, frozen[1])
    mine = paligemma.step(model, [answer[1]], [cache])
    assert np.abs(mine - other).max() > 0.01
    _, fresh = start(model, prompt, pixels, len(prompt) + 3)
    paligemma.step(model, [answer[0]], [fresh])
    np.testing.assert_array_equal(paligemma.step(model, [answer[1]], [fresh]), mine)


def test_a_full_cache_refuses(folder: Path) -> None:
    model = small_models.open_model(folder)
    prompt, answer, pixels = prompt_and_answer(5)
    _, cache = start(model, prompt, pixels, len(prompt) + 1)
    paligemma.step(model, answer[:1], [cache])
    kept = cache.key_LSKH.copy()
    with pytest.raises(Pg2RefError, match=rf"room for {len(prompt) + 1} tokens, {len(prompt) + 2} were written"):
        paligemma.step(model, answer[1:2], [cache])
    np.testing.assert_array_equal(cache.key_LSKH, kept)
    with pytest.raises(Pg2RefError, match="room for 3 tokens"):
        start(model, prompt, pixels, 3)


def test_write_gives_back_old_and_new_rows(folder: Path, rng: np.random.Generator) -> None:
    config = small_models.open_model(folder).config.text
    cache = KVCache(config, 7, 3, np.dtype(np.float32))
    assert cache.key_LSKH.shape == cache.value_LSKH.shape == (4, 7, 2, 16)
    key, value = rng.standard_normal((2, 5, 2, 16)).astype(np.float32)
    cache.write(1, key[:3], value[:3])
    cache.advance(3)
    seen_key, seen_value = cache.write(1, key[3:], value[3:])
    np.testing.assert_array_equal(seen_key, key)
    np.testing.assert_array_equal(seen_value, value)
    assert np.shares_memory(seen_key, cache.key_LSKH)
    assert (cache.key_LSKH[[0, 2, 3]] == 0).all()  # other layers
    assert cache.length == 3  # until every layer has written


def test_numbers_are_cached_in_the_model_s_own_type(folder: Path) -> None:
    for dtype in (np.float32, np.float64):
        cache = small_models.open_model(folder, dtype).empty_cache(5, 2)
        assert cache.key_LSKH.dtype == cache.value_LSKH.dtype == dtype
