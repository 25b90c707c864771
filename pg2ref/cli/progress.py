"""A progress line on a terminal: what phase, how far, how many bytes of weights have been read. Silent elsewhere."""

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pg2ref.api import Model
    from pg2ref.arrays import Array

WIDTH = 24
SECONDS_BETWEEN = 0.1


class ProgressLine:
    """One line on stderr, rewritten in place. Does nothing where stderr is no terminal or `enabled` is False."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled and sys.stderr.isatty()
        self._written = 0.0

    def show(self, label: str, done: float, total: float, detail: str = "") -> None:
        """Draw the bar; drawn at most ten times a second, and at the end of a phase."""
        now = time.monotonic()
        if not self.enabled or (now - self._written < SECONDS_BETWEEN and done < total):
            return
        self._written = now
        filled = round(WIDTH * done / total)
        text = f"{label:<16} [{'#' * filled}{'.' * (WIDTH - filled)}] {detail}"
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # a line that wraps could not be erased
        sys.stderr.write(f"\r\x1b[K{text[: columns - 1]}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Erase the line, before anything else is printed."""
        if self.enabled and self._written:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._written = 0.0


class Counter:
    """Moves a progress line on by the bytes it is called with, and clears it at the end."""

    def __init__(self, label: str, total: int) -> None:
        self.line, self.label, self.total, self.done = ProgressLine(), label, total, 0

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *_: object) -> None:
        self.line.clear()

    def __call__(self, count: int) -> None:
        """So many more bytes are done."""
        self.done += count
        self.line.show(self.label, self.done, self.total, f"{self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB")


class LayerProgress:
    """A tap (trace.py) that moves the line on at the end of each layer of reading images and prompt."""

    def __init__(self, line: ProgressLine, model: "Model", num_images: int) -> None:
        from pg2ref.benchmark.work import stored_bytes  # NumPy, only now: options.py sets its threads first

        self.line, self.num_images = line, num_images
        self.layers = {
            "vision": model.config.vision.num_hidden_layers * num_images,
            "text": model.config.text.num_hidden_layers,
        }
        params = model.numbers.params
        self.layer_bytes = {
            "vision": stored_bytes(params.vision_tower.layers[0]),
            "text": stored_bytes(params.language_model.layers[0]),
        }
        self.done = {"vision": 0, "text": 0}
        self.read: set[tuple[str, str]] = set()  # a second image passes through the same layers

    def __call__(self, stage: str, array: "Array") -> "Array":
        """Count a finished layer."""
        path = stage.split("/")
        if path[-1] == "out" and len(path) >= 3 and path[-3] in self.done:
            self._advance(path[-3], path[-2])
        return array

    def wants(self, stage: str) -> bool:
        """Nothing that costs extra."""
        return False

    def _advance(self, tower: str, layer: str) -> None:
        total = self.layers[tower]
        if self.done[tower] >= total:  # later tokens: the answer itself is the progress
            return
        self.done[tower] += 1
        self.read.add((tower, layer))
        read = sum(self.layer_bytes[of] for of, _ in self.read)
        label = "reading image" if tower == "vision" else "reading prompt"
        detail = f"layer {self.done[tower]}/{total}, {read / 1e9:.1f} GB of weights"
        self.line.show(label, self.done[tower], total, detail)
