"""A kernel just compiled gives the bits of one that comes from the disk, though Numba optimises the two apart."""

import os
import subprocess
import sys
from pathlib import Path

COMPUTE = """
import sys

import numpy as np

from pg2ref.arrays import f32_to_bf16
from pg2ref.kernels import attention, elementwise, thin

rng = np.random.default_rng(0)
found = []
for keys in (*range(1, 70), 100, 333):
    query, key, value = (rng.standard_normal(shape, np.float32) for shape in ((1, 6, 16), (keys, 3, 16), (keys, 3, 16)))
    ranges = (np.zeros(1, np.int64), np.full(1, keys - 1))
    found.append(attention.attend(2 * query, key, value, *ranges, scale=0.29, logit_cap=5.0))
    stored = f32_to_bf16(key), f32_to_bf16(value)
    found.append(attention.attend_bf16(2 * query, *stored, *ranges, scale=0.29, logit_cap=None))
x_TD, other_TD = rng.standard_normal((2, 9, 333), np.float32)
found += [elementwise.gelu(x_TD), elementwise.gated_gelu(x_TD, other_TD), elementwise.soft_cap(x_TD, 3.0)]
found.append(thin.add_thin(x_TD.copy(), other_TD, x_TD[:3], x_TD[:3].copy(), None, None))
np.save(sys.argv[1], np.concatenate([one.ravel() for one in found]))
"""


def bits(folder: Path, name: str) -> tuple[bytes, str]:
    out = folder / name
    run = subprocess.run(
        [sys.executable, "-c", COMPUTE, out],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder / "kernels")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return out.read_bytes(), run.stderr


def test_the_first_run_and_the_second_agree(tmp_path: Path) -> None:
    first, said = bits(tmp_path, "first.npy")
    assert "compiling kernels" in said
    second, said = bits(tmp_path, "second.npy")
    assert "compiling kernels" not in said
    assert first == second
