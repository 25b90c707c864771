"""Fuzzes one reader guided by coverage, with atheris (`pip install atheris`): inputs that reach new code are kept.

    python tools/fuzz_guided.py safetensors build/corpus -runs=100000

The corpus begins with inputs of tools/fuzz.py; what stands behind the folder goes to libFuzzer (`-help=1` lists it).
A fault ends the run and leaves its input as `crash-...` in the working folder.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pg2ref"]):
    from fuzzing.registry import TARGETS
    from fuzzing.trial import empty, make_input, try_input

SEEDS = 500


def main() -> None:
    """Parse, fill the corpus, hand over to libFuzzer, which ends the process."""
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_guided.py READER CORPUS [-runs=N ...]; readers: {', '.join(TARGETS)}")
    target, corpus = TARGETS[sys.argv[1]], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    for index in range(SEEDS):
        (corpus / f"made-{index}").write_bytes(make_input(target, 0, index))
    with tempfile.TemporaryDirectory() as folder:

        def one_input(content: bytes) -> None:
            try_input(target, content, Path(folder))
            empty(Path(folder))

        atheris.Setup([sys.argv[0], str(corpus), *sys.argv[3:]], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
