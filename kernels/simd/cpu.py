"""What this processor can do, looked up once: how wide its vectors are, how many it holds, which products it has.

LLVM aborts the whole process when it is told to emit an instruction the processor lacks, so nothing asks for one that
the path chosen here does not have. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, which tell Numba what to compile for, are
respected.
"""

import platform
from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm
from numba.core import config


class Cpu(NamedTuple):
    """The shape of the register file, for float32, and the instructions beyond float32 arithmetic."""

    name: str
    lanes: int  # numbers in one vector register
    registers: int
    fused: bool  # whether a multiply-add is one instruction
    bf16_dot: bool = False  # AVX-512 BF16: two bf16 products added to a float32
    int8_dot: bool = False  # AVX-512 VNNI: four int8 products added to an int32


PATHS = {
    "avx512_bf16": Cpu("avx512_bf16", lanes=16, registers=32, fused=True, bf16_dot=True, int8_dot=True),
    "avx512_vnni": Cpu("avx512_vnni", lanes=16, registers=32, fused=True, int8_dot=True),
    "avx512": Cpu("avx512", lanes=16, registers=32, fused=True),
    "avx2": Cpu("avx2", lanes=8, registers=16, fused=True),
    "generic": Cpu("generic", lanes=4, registers=16, fused=False),
}
NEEDED = {
    "avx512_bf16": {"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512vnni", "avx512bf16"},
    "avx512_vnni": {"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512vnni"},
    "avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq"},
    "avx2": {"avx2", "fma"},
}
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


@cache
def cpu() -> Cpu:
    """The best path that the target of Numba's compiler supports."""
    return path_of(target_features())


def target_features() -> set[str]:
    """Features that Numba compiles for; none are known when only a processor's name is given."""
    if config.CPU_FEATURES is not None:
        return {part[1:] for part in config.CPU_FEATURES.split(",") if part.startswith("+")}
    if not config.ENABLE_AVX:  # NUMBA_ENABLE_AVX=0, and Numba's own choice for some processors
        return set()
    if config.CPU_NAME is not None:
        return set()
    return {feature for feature, present in llvm.get_host_cpu_features().items() if present}


def path_of(features: set[str]) -> Cpu:
    """The path for a set of LLVM feature names."""
    return next((PATHS[name] for name, needed in NEEDED.items() if needed <= features), PATHS["generic"])
