"""What this processor can do, looked up once: how wide its vectors are and how many it holds.

LLVM aborts the whole process when it is told to emit an instruction the processor lacks, so nothing here asks for
one: vectors of the machine's width and fused multiply-adds, which every path has. NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES, which tell Numba what to compile for, are respected.
"""

from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm
from numba.core import config


class Cpu(NamedTuple):
    """The shape of the register file, for float32."""

    name: str
    lanes: int  # numbers in one vector register
    registers: int
    fused: bool  # whether a multiply-add is one instruction


PATHS = {
    "avx512": Cpu("avx512", lanes=16, registers=32, fused=True),
    "avx2": Cpu("avx2", lanes=8, registers=16, fused=True),
    "generic": Cpu("generic", lanes=4, registers=16, fused=False),
}


@cache
def cpu() -> Cpu:
    """The widest path that the target of Numba's compiler supports."""
    return path_of(target_features())


def target_features() -> set[str]:
    """Features that Numba compiles for; none are known when only a processor's name is given."""
    if config.CPU_FEATURES is not None:
        return {part[1:] for part in config.CPU_FEATURES.split(",") if part.startswith("+")}
    if config.CPU_NAME is not None:
        return set()
    return {feature for feature, present in llvm.get_host_cpu_features().items() if present}


def path_of(features: set[str]) -> Cpu:
    """The path for a set of LLVM feature names."""
    if {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= features:
        return PATHS["avx512"]
    return PATHS["avx2"] if {"avx2", "fma"} <= features else PATHS["generic"]
