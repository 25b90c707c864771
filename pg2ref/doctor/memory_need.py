"""How much memory a model takes: exact for weights and stored keys, measured for what is computed in between."""

from typing import NamedTuple

import numpy as np

from pg2ref.checkpoint.quantize import BF16, plan_tensor
from pg2ref.checkpoint.tensor_table import expected_shapes
from pg2ref.config import PaliGemmaConfig

PRECISIONS = {"f32": "bf16", "bf16": "bf16", "int8": "int8", "int4": "int4"}  # of computing -> of the stored weights
TEXT_TOKENS = 128  # of prompt and answer, in a typical request

# The process with all libraries, compiled kernels and a vocabulary of 257,152 pieces, before it has read an image.
PROCESS_BYTES = 140_000_000
# Float32 numbers a token, at the moment that most are held, as multiples of the decoder's widths.
OF_MLP_WIDTH, OF_WIDTH = 2.5, 14


class Need(NamedTuple):
    """Bytes for one image and one answer."""

    weights: int  # mapped from the files; shared between processes, and given back when others need memory
    keys_and_values: int
    working: int  # everything else that is the process's alone

    @property
    def anonymous(self) -> int:
        """What cannot be given back."""
        return self.keys_and_values + self.working

    @property
    def total(self) -> int:
        """With which nothing is ever read twice."""
        return self.weights + self.anonymous


def need(config: PaliGemmaConfig, precision: str, text_tokens: int = TEXT_TOKENS) -> Need:
    """For one image and so much text, prompt and answer; `precision` is one of PRECISIONS."""
    text = config.text
    tokens = config.vision.num_image_tokens + text_tokens
    number_bytes = 4 if precision == "f32" else 2
    keys = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens * number_bytes
    numbers = tokens * (OF_MLP_WIDTH * text.intermediate_size + OF_WIDTH * text.hidden_size)
    return Need(weight_bytes(config, PRECISIONS[precision]), keys, PROCESS_BYTES + int(4 * numbers))


def weight_bytes(config: PaliGemmaConfig, stored: str) -> int:
    """Of the tensors in the files: `bf16` as released, or `int8` and `int4` as `pg2ref quantize` writes them."""
    total = 0
    for name, shape in expected_shapes(config).items():
        if stored == "bf16":
            total += int(np.prod(shape)) * BF16.itemsize
        else:
            total += sum(planned.nbytes for planned in plan_tensor(name, shape, BF16, stored, "bf16").stored.values())
    return total


def verdict(needed: Need, total: int | None, available: int | None) -> str:
    """`fits`, `tight` or `no`; `unknown` where the system does not say how much there is.

    `tight` means that others must give back memory first: until then a part of the weights is read from the disk again
    for every token. With `no` that is so whatever is closed.
    """
    if total is None or available is None:
        return "unknown"
    if needed.total <= available:
        return "fits"
    return "tight" if needed.total <= total else "no"
