"""llama.cpp as a peer: the GGUF that is written holds the same decoder, and the runtime reads it as PaliGemma does.

Where `gguf` and `llama-cpp-python` are installed, which no extra of this project asks for.
"""

from pathlib import Path

import numpy as np
import pytest
import random_checkpoint
import small_models

from pg2ref.model import paligemma

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
TOKEN = 5


@pytest.mark.parametrize(("to", "least"), [("bf16", 0.9995), ("q8_0", 0.995), ("q4_0", 0.6)])
def test_scores_are_those_of_the_reference(to: str, least: float, tmp_path: Path) -> None:
    """Of a prefix whose rows all read each other, and of a token after it."""
    import gguf_decoder
    from llama_cpp_runtime import LlamaCpp

    folder, config = tmp_path / "small", random_checkpoint.released_config("small")
    text = config["text_config"]
    text["query_pre_attn_scalar"] = text["head_dim"]  # llama.cpp knows no other, but for the 27B model
    text["hidden_size"] = config["projection_dim"] = 96  # of whole groups
    random_checkpoint.write_checkpoint(folder, config, tokenizer=False)
    gguf_decoder.write_decoder(folder, tmp_path / "small.gguf", to)
    runtime = LlamaCpp(tmp_path / "small.gguf", to, 2, rows=6)
    model = small_models.open_model(folder)
    cache = model.empty_cache(runtime.rows + 1, runtime.rows)
    scale = np.float32(runtime.width**0.5)
    runtime.prefill()
    expected_V = paligemma.read(model, runtime.embeddings_TD * scale, [cache])[-1]
    assert np.corrcoef(runtime.logits(), expected_V)[0, 1] > least
    runtime.step(TOKEN)
    expected_V = paligemma.step(model, [TOKEN], [cache])[0]
    assert np.corrcoef(runtime.logits(), expected_V)[0, 1] > least
