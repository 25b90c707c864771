"""Takes the times: the machine's limits and the model's parts in turn, so that what slows one slows the other.

Machines are noisy and clocks change. Each repetition measures a limit directly before the part of the model that is
judged by it, and the share is taken within the repetition.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pg2ref.arrays import Array
from pg2ref.benchmark.report import Limit, Measure, Report
from pg2ref.benchmark.work import Work, decode_work, prefill_work, vision_work
from pg2ref.inputs.image import ImageSource
from pg2ref.model.paligemma import encode_images, prefill, step

if TYPE_CHECKING:
    from pg2ref.api import Model

READ_BYTES = 1 << 30  # far more than caches hold
MULTIPLY_TURNS = 1 << 22  # some 30 ms
ARITHMETIC = ("f32", "bf16", "int8")
DEFAULT_PROMPT = "answer en how many cats are there?"
OnStep = Callable[[str, int, int], None]  # what is done, step, of how many


class Machine:
    """Measures limits and keeps what it found."""

    def __init__(self) -> None:
        from pg2ref.kernels import compiling, machine_limits  # Numba is imported here

        self._kernels = machine_limits
        self.threads, self.path = compiling.num_threads(), machine_limits.path_name()
        self._words_W = np.full(READ_BYTES // 4, 1, np.uint32)  # written, or all pages would be one page of zeros
        self.rates: dict[str, list[float]] = {"read": [], **{kind: [] for kind in ARITHMETIC}}
        self._emulated = {kind: self._kernels.multiply(kind, 1).is_emulated for kind in ARITHMETIC}
        self._kernels.read(self._words_W)

    def measure(self, name: str) -> float:
        """One limit, now: bytes or operations a second."""
        started = time.perf_counter()
        if name == "read":
            amount = self._kernels.read(self._words_W)
        else:
            amount = self._kernels.multiply(name, MULTIPLY_TURNS).operations
        rate = amount / (time.perf_counter() - started)
        self.rates[name].append(rate)
        return rate

    def limits(self) -> tuple[Limit, ...]:
        """All that was measured."""
        return tuple(Limit(name, tuple(rates), self._emulated.get(name, False)) for name, rates in self.rates.items())


class Parts:
    """The model's parts on one image and prompt, each a call that returns its seconds."""

    def __init__(self, model: "Model", image: ImageSource, prompt: str, new_tokens: int) -> None:
        self.numbers, self.new_tokens = model.numbers, new_tokens
        prepared = model.prepare(image, prompt)
        self.pixel_values, self.prompt_ids = prepared.pixel_values, prepared.prompt_ids
        precision = str(model.described["dtype"])
        self._length = len(self.prompt_ids)
        self._embeddings_ID = encode_images(self.numbers, self.pixel_values)
        self._cache = self._new_cache()
        prefill(self.numbers, self._embeddings_ID, self.prompt_ids, self._cache)
        middle = self._new_cache()
        middle.length = self._length + (new_tokens - 1) // 2
        self.work: Mapping[str, Work] = {
            "vision": vision_work(self.numbers, precision),
            "prefill": prefill_work(self.numbers, self._length, precision),
            "decode": decode_work(self.numbers, middle, precision),
        }

    def run(self, name: str) -> float:
        """Seconds of one pass; decoding, after a prefill, makes all tokens and returns the mean of one."""
        started = time.perf_counter()
        if name == "vision":
            self._embeddings_ID = encode_images(self.numbers, self.pixel_values)
        elif name == "prefill":
            self._cache = self._new_cache()
            prefill(self.numbers, self._embeddings_ID, self.prompt_ids, self._cache)
        else:
            self._cache.length = self._length
            for _ in range(self.new_tokens):
                step(self.numbers, [self.prompt_ids[-1]], [self._cache])
        passes = self.new_tokens if name == "decode" else 1
        return (time.perf_counter() - started) / passes

    def _new_cache(self) -> Any:
        return self.numbers.empty_cache(self._length + self.new_tokens, self._length)


def synthetic_image(side_px: int = 640) -> Array:
    """A picture to read, `image_YXC` of uint8; times do not depend on what it shows."""
    y, x = np.mgrid[:side_px, :side_px]
    return np.stack([x * 255 // side_px, y * 255 // side_px, (x ^ y) & 255], -1).astype(np.uint8)


def bench_machine(repeat: int, on_step: OnStep) -> Report:
    """The machine's limits alone."""
    machine = Machine()
    for repetition in range(repeat):
        for name in machine.rates:
            on_step(f"measuring {name}", repetition, repeat)
            machine.measure(name)
    return Report(machine.threads, machine.path, repeat, machine.limits())


def bench_model(
    model: "Model", image: ImageSource | None, prompt: str, *, new_tokens: int, repeat: int, on_step: OnStep
) -> Report:
    """The machine's limits and the model's parts.

    Args:
        model: computed with the kernels.
        image: None for a drawn one.
        prompt: as for `Model.generate`.
        new_tokens: how many tokens each repetition decodes.
        repeat: how often each part is measured.
        on_step: hears what is being measured.

    Raises:
        InputError: the image or the prompt cannot be read.
    """
    machine = Machine()
    on_step("warming up", 0, repeat)
    parts = Parts(model, synthetic_image() if image is None else image, prompt, new_tokens)
    parts.run("decode")
    seconds: dict[str, list[float]] = {name: [] for name in parts.work}
    limit_seconds: dict[str, list[float]] = {name: [] for name in parts.work}
    for repetition in range(repeat):
        for name, work in parts.work.items():
            on_step(f"measuring {name}", repetition, repeat)
            if name == "decode":
                limit_seconds[name].append(work.bytes_read / machine.measure("read"))
            else:
                rates = {kind: machine.measure(kind) for kind in ARITHMETIC}
                limit_seconds[name].append(sum(n / rates[kind] for kind, n in work.operations.items()))
            seconds[name].append(parts.run(name))
    image_tokens = model.config.vision.num_image_tokens
    return Report(
        machine.threads,
        machine.path,
        repeat,
        machine.limits(),
        model=model.described,
        input={
            "image": None if image is None else str(image),
            "image_size_px": model.config.vision.image_size,
            "image_tokens": image_tokens,
            "prompt": prompt,
            "text_tokens": len(parts.prompt_ids) - image_tokens,
            "new_tokens": new_tokens,
        },
        measures=tuple(
            Measure(name, work, tuple(seconds[name]), tuple(limit_seconds[name])) for name, work in parts.work.items()
        ),
    )
