"""What every stage does alike: go on from the last state, count, log, save, stop."""

import json
import os
import time
from pathlib import Path
from typing import Any

import click
import torch
from processes import rank

SAVE_SECONDS = 60.0


class Run:
    """A folder with `state.pt` and `log.jsonl`. `parts` are modules and optimisers, by name."""

    def __init__(self, folder: Path, parts: dict[str, Any]) -> None:
        self.folder, self.parts = folder, parts
        self.step = 0
        self.compute_seconds = 0.0  # of this process, on its processors; waiting does not count
        folder.mkdir(parents=True, exist_ok=True)
        self.is_new = not (folder / "state.pt").exists()
        if not self.is_new:
            self._go_on(torch.load(folder / "state.pt", weights_only=True))
        self._begun, self._counted = time.process_time(), self.compute_seconds
        self._saved = time.monotonic()
        self._sums: dict[str, float] = {}
        self._summed = 0

    def _go_on(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["rng"])
        self.step, self.compute_seconds = state["step"], state["compute_seconds"]

    def save(self) -> None:
        """Whole or not at all; by the first of several processes, which all hold the same."""
        if rank() > 0:
            return
        self._count()
        state = {"parts": {name: part.state_dict() for name, part in self.parts.items()}, "step": self.step}
        state |= {"rng": torch.get_rng_state(), "compute_seconds": self.compute_seconds}
        torch.save(state, self.folder / "state.part")
        os.replace(self.folder / "state.part", self.folder / "state.pt")
        self._saved = time.monotonic()

    def stepped(self, losses: dict[str, float]) -> None:
        """Count a step, add up its losses, and save now and then."""
        self.step += 1
        self._summed += 1
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + loss
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def log(self, measured: dict[str, float], **counted: float) -> None:
        """A line of the log: counts, mean losses since the last line, and what was measured now."""
        if rank() > 0:
            return
        self._count()
        line = {"step": self.step, **counted, "seconds": round(self.compute_seconds, 1)}
        line |= {f"loss_{name}": round(total / max(self._summed, 1), 4) for name, total in self._sums.items()}
        line |= {name: round(value, 4) for name, value in measured.items()}
        self._sums, self._summed = {}, 0
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        click.echo(json.dumps(line))

    def _count(self) -> None:
        self.compute_seconds = self._counted + time.process_time() - self._begun
