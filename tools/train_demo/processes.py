"""Several processes of one thread each that train one model: at this size faster than one process of several threads.

python -m torch.distributed.run --nproc-per-node 2 tools/train_demo/train_joint.py build/demo
"""

import os
from collections.abc import Sequence

import torch
from torch import distributed, nn


def join() -> None:
    """Meet the other processes, if this one was started with others; one thread each."""
    if world() > 1 and not distributed.is_initialized():
        torch.set_num_threads(1)
        distributed.init_process_group("gloo")


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is; the first logs and saves."""
    return int(os.environ.get("RANK", "0"))


def average(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients."""
    if world() == 1:
        return
    given = [parameter for parameter in parameters if parameter.grad is not None]
    joined = torch.cat([parameter.grad.flatten() for parameter in given])
    distributed.all_reduce(joined)
    joined /= world()
    for parameter, mean in zip(given, joined.split([parameter.numel() for parameter in given]), strict=True):
        parameter.grad.copy_(mean.view_as(parameter))
