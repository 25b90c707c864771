"""The Gemma 2 decoder in llama.cpp, as a runtime of tools/peer_runtimes.py; FOLDER is a GGUF of tools/gguf_decoder.py.

It has no vision tower: embeddings of the length that the 224 px models read stand in for an image's, and times do not
depend on what they hold. A prompt's rows read each other in both directions, as in PaliGemma, by switching the causal
mask off. Needs `pip install llama-cpp-python`.
"""

import os
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from pg2ref.arrays import Array

IMAGE_AND_PROMPT = 256 + 10  # rows; those of tools/bench_peers.py at 224 px
ERROR = 4  # of GGML's levels


@llama_cpp.llama_log_callback  # type: ignore[misc]
def say_errors(level: int, text: bytes, _: Any) -> None:
    """llama.cpp tells each step it takes; what goes wrong is enough."""
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


llama_cpp.llama_log_set(say_errors, None)


class LlamaCpp:
    """A GGUF on rows of embeddings, then on one token after the other."""

    def __init__(self, path: Path, precision: str, new_tokens: int, rows: int = IMAGE_AND_PROMPT) -> None:
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options())
        if not self._model:
            raise SystemExit(f"{path}: llama.cpp cannot read it: write one with tools/gguf_decoder.py")
        self.width, self.rows = llama_cpp.llama_model_n_embd(self._model), rows
        self._context = llama_cpp.llama_init_from_model(self._model, context_options(rows + new_tokens))
        # llama.cpp multiplies embeddings by the root of their width, image or not: these end near 1
        self.embeddings_TD = np.random.default_rng(0).standard_normal((rows, self.width), np.float32)
        self.embeddings_TD /= np.float32(self.width**0.5)
        self.prefill()
        self.step()
        self.name = f"llama.cpp {precision} (llama-cpp-python {llama_cpp.__version__})"

    def encode(self) -> None:
        """There is nothing to encode with."""
        raise NotImplementedError("llama.cpp runs the decoder alone: measure prefill and decode")

    def prefill(self) -> None:
        """Read the embeddings into an empty cache, up to the scores of the first token."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        llama_cpp.llama_set_causal_attn(self._context, False)
        self._length = 0
        self._decode(self.embeddings_TD)

    def step(self, token_id: int = 0) -> None:
        """One token."""
        llama_cpp.llama_set_causal_attn(self._context, True)
        self._decode(token_id)

    def logits(self) -> Array:
        """`logits_V` of the last row that was read."""
        count = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, -1), (count,)).copy()

    def _decode(self, rows: Any) -> None:
        """Rows of embeddings, or one id."""
        count, width = (1, 0) if isinstance(rows, int) else rows.shape
        batch = llama_cpp.llama_batch_init(count, width, 1)
        batch.n_tokens = count
        if width:
            np.ctypeslib.as_array(batch.embd, rows.shape)[:] = rows
        else:
            batch.token[0] = rows
        for row in range(count):
            batch.pos[row], batch.n_seq_id[row], batch.seq_id[row][0] = self._length + row, 1, 0
            batch.logits[row] = row == count - 1
        failed = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        if failed:
            raise SystemExit(f"llama_decode ended with {failed} for {count} rows at {self._length}")
        self._length += count


def model_options() -> Any:
    """Weights stay in the mapped file, as pg2ref's do."""
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    return options


def context_options(tokens: int) -> Any:
    """Room for one sequence, whose prompt is read at once; as many threads as the other side."""
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = tokens
    options.n_threads = options.n_threads_batch = int(os.environ.get("OMP_NUM_THREADS", "2"))
    return options
