"""Muon for the matrices inside the towers, AdamW for everything else, and one schedule for both."""

from collections.abc import Iterable
from typing import Any

import torch
from processes import average
from torch import nn

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.02
CLIP = 1.0


class Optimiser:
    """Two optimisers that step as one."""

    def __init__(self, modules: Iterable[tuple[nn.Module, float]], highest_rate: float, muon_rate: float) -> None:
        """`modules` come with the share of the rate that each is trained at."""
        groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for module, share in modules:
            split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
            for name, parameter in module.named_parameters():
                split[muon_rate > 0 and ".layers." in "." + name and parameter.ndim == 2].append(parameter)
            for inside, parameters in split.items():
                rate = (muon_rate if inside else highest_rate) * share
                groups[inside].append({"params": parameters, "lr": rate, "highest": rate})
        self.parameters = [p for kind in groups.values() for group in kind for p in group["params"]]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups[False], betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
        ]
        if any(group["params"] for group in groups[True]):
            inner = [group for group in groups[True] if group["params"]]
            self.parts.append(torch.optim.Muon(inner, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"))

    def step(self, share: float) -> None:
        """One step at a share of the highest rates; gradients are averaged, clipped, used and cleared."""
        average(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["highest"] * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """What to go on from."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from there, at the rates that this one was made with."""
        for part, state in zip(self.parts, states, strict=True):
            highest = [group["highest"] for group in part.param_groups]
            part.load_state_dict(state)
            for group, rate in zip(part.param_groups, highest, strict=True):
                group["highest"] = rate


def rate_share(step: int, steps: int, warm_up: int, final_share: float) -> float:
    """Up over the warm-up, then constant, then down to 0 in a line over the last `final_share` of the steps."""
    return min(1.0, (step + 1) / warm_up, (steps - step) / (final_share * steps))
