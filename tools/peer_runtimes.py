"""The runtimes that tools/bench_peers.py compares, each in a process of its own that waits on a pipe.

    python tools/peer_runtimes.py RUNTIME FOLDER PRECISION NEW_TOKENS     (llama.cpp takes a GGUF file for FOLDER)

A request is a line on stdin, the name of a part; the answer is a line on stdout, seconds of one pass.
Two thread pools in one process spin against each other, so each side has a process, and while one computes the other
sleeps in `read`. To add a runtime, write a class with the methods of `Runtime` and name it in RUNTIMES.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

SYNTHETIC_SIDE_PX = 640
BF16, F32 = "bf16", "f32"


class Runtime(Protocol):
    """A model on one image and prompt. Made by running each part once, so that all is compiled and in memory."""

    name: str

    def encode(self) -> None:
        """Pixels to image embeddings, the projector included."""

    def prefill(self) -> None:
        """Read image embeddings and prompt into a new cache, up to the scores of the first token."""

    def step(self) -> None:
        """Decode one token more."""


class Pg2ref:
    """This project, by its kernels."""

    def __init__(self, folder: Path, precision: str, new_tokens: int) -> None:
        import pg2ref
        from pg2ref.benchmark.measure import DEFAULT_PROMPT, Parts, synthetic_image

        model = pg2ref.load(folder, precision=precision, backend="numba")
        parts = Parts(model, synthetic_image(SYNTHETIC_SIDE_PX), DEFAULT_PROMPT, new_tokens)
        self.encode, self.prefill, self.step = parts.encode, parts.prefill, parts.step
        self.name = f"pg2ref {precision}"


class Transformers:
    """PaliGemmaForConditionalGeneration on the same pixels and ids.

    Its text attention is eager, the only one it has for Gemma 2; its vision attention the faster of eager and sdpa.
    """

    def __init__(self, folder: Path, precision: str, new_tokens: int) -> None:
        import torch
        import transformers

        import pg2ref
        from pg2ref.benchmark.measure import DEFAULT_PROMPT, synthetic_image

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.set_grad_enabled(False)
        self._dtype = torch.bfloat16 if precision == BF16 else torch.float32
        reader = pg2ref.load(folder, precision="f32", backend="numpy")  # no kernels, no threads: pixels and ids alone
        prepared = reader.prepare(synthetic_image(SYNTHETIC_SIDE_PX), DEFAULT_PROMPT)
        self._pixels = torch.from_numpy(prepared.pixel_values[0][None]).to(self._dtype)
        self._ids = torch.tensor([prepared.prompt_ids])
        loaded = transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=self._dtype)
        self._model = loaded.eval()
        attention = self._choose_attention()
        self.name = f"Transformers {transformers.__version__} {precision} ({attention})"

    def encode(self) -> None:
        """Vision tower and projector."""
        self._features = self._model.model.get_image_features(self._pixels)

    def prefill(self) -> None:
        """The decoder over the prompt, image embeddings given; the output matrix for the last row alone."""
        import torch

        output = self._model(
            input_ids=self._ids,
            mm_encoder_outputs={"image": self._features},
            token_type_ids=torch.zeros_like(self._ids),
            attention_mask=torch.ones_like(self._ids),
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values

    def step(self) -> None:
        """One token."""
        self._model(input_ids=self._ids[:, -1:], past_key_values=self._cache, use_cache=True)

    def _choose_attention(self) -> str:
        seconds = {}
        for vision in ("eager", "sdpa"):
            self._model.set_attn_implementation({"text_config": "eager", "vision_config": vision})
            for _ in range(2):  # the first warms up
                started = time.perf_counter()
                self.encode()
                seconds[vision] = time.perf_counter() - started
        fastest = min(seconds, key=lambda vision: seconds[vision])
        self._model.set_attn_implementation({"text_config": "eager", "vision_config": fastest})
        self.prefill()
        self.step()
        return f"text eager, vision {fastest}"


def llama_cpp(path: Path, precision: str, new_tokens: int) -> Runtime:
    """The decoder alone, of a GGUF file."""
    from llama_cpp_runtime import LlamaCpp

    return LlamaCpp(path, precision, new_tokens)


RUNTIMES: Mapping[str, Callable[[Path, str, int], Runtime]] = {
    "pg2ref": Pg2ref,
    "transformers": Transformers,
    "llama.cpp": llama_cpp,
}


class Server:
    """Answers requests for one runtime."""

    def __init__(self, runtime: Runtime, new_tokens: int) -> None:
        self.runtime, self.new_tokens = runtime, new_tokens
        self._is_prefilled = False

    def seconds(self, part: str) -> float:
        """Of one pass; decoding starts after a prefill, which does not count, and the mean of a token is returned."""
        runtime, passes = self.runtime, 1
        if part == "decode" and not self._is_prefilled:
            runtime.prefill()
        started = time.perf_counter()
        if part in ("vision", "vision+prefill"):
            runtime.encode()
        if part in ("prefill", "vision+prefill"):
            runtime.prefill()
        if part == "decode":
            passes = self.new_tokens
            for _ in range(passes):
                runtime.step()
        seconds = (time.perf_counter() - started) / passes
        self._is_prefilled = part in ("prefill", "vision+prefill")
        return seconds


def main(runtime: str, folder: str, precision: str, new_tokens: str) -> None:
    """Say the runtime's name, then answer until stdin ends; stdout is kept from whatever else prints."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def answer(content: Any) -> None:
        answers.write(json.dumps(content) + "\n")

    server = Server(RUNTIMES[runtime](Path(folder), precision, int(new_tokens)), int(new_tokens))
    answer(server.runtime.name)
    for line in sys.stdin:
        answer(server.seconds(line.strip()))


if __name__ == "__main__":
    main(*sys.argv[1:])
