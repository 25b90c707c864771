"""What a process pays before its first kernel runs, what it says meanwhile, and what makes it compile again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent.parent / "kernels"
TILE_PROGRAM = """
import numpy as np
from pg2ref.kernels import elementwise, linear
out = linear.linear(np.ones((17, 3), np.float32), np.ones((5, 3), np.float32))
assert (out == out[0, 0]).all()
print(linear.__file__, out[0, 0], elementwise.gelu(np.zeros(1, np.float32))[0])
"""
SECONDS_PROGRAM = """
import resource
import numba
import numpy as np
{}
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime)
"""
FIRST_KERNEL_PROGRAM = SECONDS_PROGRAM.format("""
from pg2ref.kernels import linear
linear.linear_bf16(np.ones((1, 256), np.float32), np.ones((64, 256), np.uint16))
""")
LINE = "compiling kernels for this processor"


def run(program: str, **variables: str) -> tuple[str, int]:
    """What the program prints, and how often it says that it compiles."""
    command = [sys.executable, "-P", "-c", program]  # -P: what lies in the current folder is not imported
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.count(LINE)


def test_a_changed_tile_is_compiled_anew_and_said_so(tmp_path: Path) -> None:
    """A copy of the kernels: two of them compile and one line says so; then none; then the tile's sums start at 1."""
    shutil.copytree(KERNELS, tmp_path / "pg2ref" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pg2ref" / "__init__.py").touch()
    variables = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    copied = tmp_path / "pg2ref" / "kernels" / "linear.py"
    assert run(TILE_PROGRAM, **variables) == (f"{copied} 3.0 0.0", 1)
    assert run(TILE_PROGRAM, **variables) == (f"{copied} 3.0 0.0", 0)
    tile = tmp_path / "pg2ref" / "kernels" / "simd" / "tile.py"
    text, begin = tile.read_text(encoding="utf-8"), "e.load(e.address(row, v * width), e.vector)"
    assert text.count(begin) == 1
    tile.write_text(text.replace(begin, "e.number(1.0)"), encoding="utf-8")
    assert run(TILE_PROGRAM, **variables) == (f"{copied} 4.0 0.0", 1)
    assert run(TILE_PROGRAM, **variables) == (f"{copied} 4.0 0.0", 0)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource usage")
def test_a_second_process_is_soon_at_its_first_kernel(tmp_path: Path) -> None:
    """In seconds of the processor, beside those of importing Numba alone, the least of three: 0.73 beside 0.45, say.

    Within one second where that import takes no more than 0.4: the rest is the machine's.
    """
    variables = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert run(FIRST_KERNEL_PROGRAM, **variables)[1] == 1
    runs = [run(FIRST_KERNEL_PROGRAM, **variables) for _ in range(3)]
    assert [lines for _, lines in runs] == [0, 0, 0]
    alone = min(float(run(SECONDS_PROGRAM.format(""), **variables)[0]) for _ in range(3))
    assert min(float(seconds) for seconds, _ in runs) < 2.5 * alone
