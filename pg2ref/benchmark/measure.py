"""Takes the times: the machine's limits and the model's parts in turn, so that what slows one slows the other.

Machines are noisy and clocks change. Each repetition measures a limit right beside the part of the model that is judged
by it, and the share is taken within the repetition.
"""

import time
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from pg2ref.arrays import Array
from pg2ref.benchmark.report import Limit, Measure, Report
from pg2ref.benchmark.work import Work, decode_work, prefill_work, vision_work
from pg2ref.inputs.image import ImageSource
from pg2ref.model.paligemma import encode_images, prefill, step
from pg2ref.policy import INTEGER_PRECISIONS

if TYPE_CHECKING:
    from pg2ref.api import Model

READ_BYTES = 1 << 30  # far more than caches hold
MULTIPLY_TURNS = 1 << 22  # some 30 ms
ARITHMETIC = ("f32", "bf16", "int8")
DEFAULT_PROMPT = "answer en how many cats are there?"
OnStep = Callable[[str, int, int], None]  # what is done, step, of how many


class Machine:
    """Measures limits and keeps what it found."""

    def __init__(self, mapped_W: Array | None = None) -> None:
        from pg2ref.kernels import compiling, machine_limits  # Numba is imported here

        self._kernels = machine_limits
        self.threads, self.path = compiling.num_threads(), machine_limits.path_name()
        anonymous_W = np.full(READ_BYTES // 4, 1, np.uint32)  # written, or all pages would be one page of zeros
        self._words = {"read": anonymous_W} | ({} if mapped_W is None else {"mapped": mapped_W})
        self.rates: dict[str, list[float]] = {name: [] for name in (*self._words, *ARITHMETIC)}
        self._emulated = {kind: self._kernels.multiply_repeatedly(kind, 1).is_emulated for kind in ARITHMETIC}
        for words_W in self._words.values():
            self._kernels.read(words_W)

    def measure(self, name: str) -> float:
        """One limit, now: bytes or operations a second."""
        started = time.perf_counter()
        if name in self._words:
            amount = self._kernels.read(self._words[name])
        else:
            amount = self._kernels.multiply_repeatedly(name, MULTIPLY_TURNS).operations
        rate = amount / (time.perf_counter() - started)
        self.rates[name].append(rate)
        return rate

    def multiply_seconds(self, work: Work) -> float:
        """How long the operations would take at the peak of each kind, now."""
        return sum(count / self.measure(kind) for kind, count in work.operations.items())

    def read_seconds(self, work: Work) -> float:
        """How long reading would take, now."""
        return work.bytes_read / self.measure("read")

    def limits(self) -> tuple[Limit, ...]:
        """All that was measured."""
        return tuple(Limit(name, tuple(rates), self._emulated.get(name, False)) for name, rates in self.rates.items())


class Parts:
    """The model's parts on one image and prompt. Made by running each once, so that all is compiled and in memory."""

    def __init__(self, model: "Model", image: ImageSource, prompt: str, new_tokens: int) -> None:
        self.numbers, self.new_tokens = model.numbers, new_tokens
        prepared = model.prepare(image, prompt)
        self.pixel_values, self.prompt_ids = prepared.pixel_values, prepared.prompt_ids
        self.encode()
        self.prefill()
        self.step()
        precision, length = str(model.described["dtype"]), len(self.prompt_ids)
        precision = "bf16" if precision in INTEGER_PRECISIONS else precision  # what is not quantised, attention too
        self._cache.length = length + (new_tokens - 1) // 2  # of the tokens decoded, the one in the middle
        self.work: Mapping[str, Work] = {
            "vision": vision_work(self.numbers, precision),
            "prefill": prefill_work(self.numbers, length, precision),
            "decode": decode_work(self.numbers, self._cache, precision),
        }

    def encode(self) -> None:
        """Pixels to image embeddings."""
        self._embeddings_ID = encode_images(self.numbers, self.pixel_values)

    def prefill(self) -> None:
        """Read the prompt into a new cache, up to the scores of the first token."""
        length = len(self.prompt_ids)
        self._cache = self.numbers.empty_cache(length + self.new_tokens, length)
        prefill(self.numbers, self._embeddings_ID, self.prompt_ids, self._cache)

    def step(self) -> None:
        """Decode one token more; which one makes no difference to the time."""
        step(self.numbers, [self.prompt_ids[-1]], [self._cache])


def seconds_of(call: Callable[[], None]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_part(machine: Machine, parts: Parts, name: str) -> tuple[float, float]:
    """Seconds of one pass, and of its work at the machine's limit.

    Arithmetic is measured before and after, and the better one counts: a dip in one of them must not flatter the
    model. Bandwidth changes with what the neighbours on the memory do, from one moment to the next: it is measured
    between any two tokens, and means are compared.
    """
    work = parts.work[name]
    if name != "decode":
        before = machine.multiply_seconds(work)
        seconds = seconds_of(parts.encode if name == "vision" else parts.prefill)
        return seconds, min(before, machine.multiply_seconds(work))
    limits, taken = [], []
    for _ in range(parts.new_tokens):
        limits.append(machine.read_seconds(work))
        machine.measure("mapped")
        taken.append(seconds_of(parts.step))
    return fmean(taken), fmean(limits)


def synthetic_image(side_px: int = 640) -> Array:
    """A picture to read, `image_YXC` of uint8; times do not depend on what it shows."""
    y, x = np.mgrid[:side_px, :side_px]
    return np.stack([x * 255 // side_px, y * 255 // side_px, (x ^ y) & 255], -1).astype(np.uint8)


def largest_weight(model: "Model") -> Array:
    """The largest stored tensor as words, at most READ_BYTES of it, from the first whole word on."""
    largest = max(model.checkpoint.tensors.values(), key=lambda tensor: tensor.nbytes).reshape(-1).view(np.uint8)
    whole = largest[-largest.ctypes.data % 4 :][:READ_BYTES]
    return whole[: len(whole) // 4 * 4].view(np.uint32)


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
    on_step("warming up", 0, repeat)
    machine = Machine(largest_weight(model))
    parts = Parts(model, synthetic_image() if image is None else image, prompt, new_tokens)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in parts.work}
    for repetition in range(repeat):
        for kind in ARITHMETIC:
            machine.measure(kind)
        for name in parts.work:
            on_step(f"measuring {name}", repetition, repeat)
            found[name].append(measure_part(machine, parts, name))
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
        measures=tuple(Measure(name, work, *zip(*found[name], strict=True)) for name, work in parts.work.items()),
    )
