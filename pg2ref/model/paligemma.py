"""Step 7 of 9: the whole model, image and prompt to the scores of the next token. Next: generation/generate.py."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pg2ref.arrays import Array
from pg2ref.config import PaliGemmaConfig
from pg2ref.errors import PromptError, ShapeError
from pg2ref.model import gemma2, projector, siglip
from pg2ref.model.backend import REFERENCE, Ops
from pg2ref.model.gemma2 import Gemma2Params
from pg2ref.model.kv_cache import KVCache
from pg2ref.model.ops import Affine
from pg2ref.model.siglip import SiglipParams
from pg2ref.trace import Prefixed, Tap, no_tap

TOGETHER = 16  # rows: kernels sum as many in the order in which they sum one (kernels/few_rows.py)


class Params(NamedTuple):
    """All weights, as they lie in the checkpoint."""

    vision_tower: SiglipParams
    multi_modal_projector: Affine
    language_model: Gemma2Params


class PaliGemma(NamedTuple):
    """Weights, what they mean, and how to compute with them."""

    params: Params
    config: PaliGemmaConfig
    dtype: np.dtype[Any] = np.dtype(np.float32)
    ops: Ops = REFERENCE
    window_policy: str = "transformers"
    cache_dtype: np.dtype[Any] | None = None  # of stored keys and values: `dtype`, or uint16 for bf16

    def empty_cache(self, capacity_tokens: int, prefix_length: int) -> KVCache:
        """A cache for one sequence."""
        dtype = self.cache_dtype or self.dtype
        return KVCache(self.config.text, capacity_tokens, prefix_length, dtype, self.ops.to_bf16)


def encode_images(model: PaliGemma, images: Sequence[Array], *, tap: Tap = no_tap) -> Array:
    """Image embeddings of all images, one after the other; each is `pixel_values_CYX`."""
    vision = model.config.vision
    expected = (vision.num_channels, vision.image_size, vision.image_size)
    embeddings = []
    for index, pixel_values_CYX in enumerate(images):
        image_tap = tap if index == 0 else Prefixed(tap, f"image_{index}/")
        if pixel_values_CYX.shape != expected:
            raise ShapeError(f"pixel values have shape {pixel_values_CYX.shape}, this checkpoint needs {expected}")
        pixels = pixel_values_CYX.astype(model.dtype)
        features_IE = siglip.encode(model.params.vision_tower, vision, pixels, ops=model.ops, tap=image_tap)
        embeddings.append(
            projector.project(model.params.multi_modal_projector, features_IE, ops=model.ops, tap=image_tap)
        )
    return np.concatenate(embeddings)


def embed_prefix(
    model: PaliGemma, image_embeddings_ID: Array, prompt_ids: Sequence[int], answer_ids: Sequence[int] = ()
) -> Array:
    """Text embeddings, scaled, with the image embeddings, unscaled, in the places of the prompt's `<image>` ids.

    An answer's `<image>` id, should the model choose it, is a token like others.
    """
    text, config = model.params.language_model, model.config.text
    ids_T = np.asarray(prompt_ids, np.int64)
    is_image_T = ids_T == model.config.image_token_id
    if is_image_T.sum() != len(image_embeddings_ID):
        raise PromptError(f"the prompt has {is_image_T.sum()} image tokens, the images give {len(image_embeddings_ID)}")
    text_ids_T = np.where(is_image_T, 0, ids_T)  # the id of <image> need not have a row of its own
    embeddings_TD = gemma2.embed(text, config, text_ids_T, model.dtype, ops=model.ops)
    embeddings_TD[is_image_T] = image_embeddings_ID
    answer_TD = gemma2.embed(text, config, np.asarray(answer_ids, np.int64), model.dtype, ops=model.ops)
    return np.concatenate([embeddings_TD, answer_TD])


def prefill(
    model: PaliGemma,
    image_embeddings_ID: Array,
    prompt_ids: Sequence[int],
    cache: KVCache,
    *,
    tap: Tap = no_tap,
) -> Array:
    """Read images and prompt; `logits_V` of the first answer token."""
    prefix_TD = tap("prefix/embeddings", embed_prefix(model, image_embeddings_ID, prompt_ids))
    return read(model, prefix_TD, [cache], tap=tap)[-1]


def step(model: PaliGemma, token_ids: Sequence[int], caches: Sequence[KVCache], *, tap: Tap = no_tap) -> Array:
    """Read one new token of each sequence; `logits_TV`, one row a sequence.

    More than TOGETHER go in groups, so that each gets the numbers that it gets alone.
    """
    ids_T = np.asarray(token_ids, np.int64)
    embeddings_TD = gemma2.embed(model.params.language_model, model.config.text, ids_T, model.dtype, ops=model.ops)
    groups = [slice(start, start + TOGETHER) for start in range(0, len(caches), TOGETHER)]
    return np.concatenate([read(model, embeddings_TD[group], caches[group], tap=tap) for group in groups])


def forward(
    model: PaliGemma, image_embeddings_ID: Array, ids: Sequence[int], prefix_length: int, *, tap: Tap = no_tap
) -> Array:
    """Read a whole sequence at once, prefix and given answer; `logits_TV` of every row (teacher forcing).

    `ids` has one `<image>` id for each image embedding; rows from `prefix_length` on are the answer's.
    """
    embeddings_TD = tap("prefix/embeddings", embed_prefix(model, image_embeddings_ID, ids))
    cache = model.empty_cache(len(ids), prefix_length)
    return logits(model, decode(model, embeddings_TD, [cache], tap), tap)


def follow(model: PaliGemma, token_ids: Sequence[int], cache: KVCache, *, tap: Tap = no_tap) -> Array:
    """Read given tokens behind what the cache holds; `logits_TV` of every row (teacher forcing)."""
    ids_T = np.asarray(token_ids, np.int64)
    embeddings_TD = gemma2.embed(model.params.language_model, model.config.text, ids_T, model.dtype)
    return logits(model, decode(model, embeddings_TD, [cache], tap), tap)


def read(model: PaliGemma, embeddings_TD: Array, caches: Sequence[KVCache], *, tap: Tap = no_tap) -> Array:
    """Run the decoder over new rows; `logits_TV` of the last row of each sequence."""
    hidden_TD = decode(model, embeddings_TD, caches, tap)
    rows_each = hidden_TD.shape[0] // len(caches)
    return logits(model, hidden_TD[rows_each - 1 :: rows_each], tap)


def decode(model: PaliGemma, embeddings_TD: Array, caches: Sequence[KVCache], tap: Tap) -> Array:
    """The decoder of gemma2.py with this model's weights and choices."""
    text, config = model.params.language_model, model.config.text
    return gemma2.decode(text, config, embeddings_TD, caches, window_policy=model.window_policy, ops=model.ops, tap=tap)


def logits(model: PaliGemma, hidden_TD: Array, tap: Tap) -> Array:
    """The scores of gemma2.py, likewise."""
    return gemma2.logits(model.params.language_model, model.config.text, hidden_TD, ops=model.ops, tap=tap)
