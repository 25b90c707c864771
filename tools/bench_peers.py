"""Runs pg2ref beside other runtimes on the same checkpoints, in turn, and prints both sides and their ratio.

    python tools/bench_peers.py /data/random-3b-224
    python tools/bench_peers.py /data/random-3b-224 /data/random-3b-448 /data/random-3b-224-int8 --bars -o results.json
    python tools/bench_peers.py /data/random-3b-224 --measures "decode bf16" --measures "vision bf16"
    python tools/bench_peers.py /data/random-3b-224 --readme README.md
    python tools/bench_peers.py /data/random-3b-224 --gguf /data/random-3b-224.bf16.gguf

Each folder is used for the measures that it fits: a bf16 checkpoint for most, one of 448 px for those, quantised ones
against the bf16 one. Peers come one after the other, so that memory holds one at a time: Transformers needs 4 bytes a
weight in float32. Needs the `parity` extra. A GGUF of tools/gguf_decoder.py, named for its type as above, is run by
llama.cpp beside the folder of like weights (tools/llama_cpp_runtime.py). Other runtimes: see tools/peer_runtimes.py.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import peer_table
from peer_runtimes import BF16, F32
from peer_table import BARS, Row, Side
from PIL import Image
from tool_help import help_of
from watched_process import run

from pg2ref.benchmark.measure import DEFAULT_PROMPT, synthetic_image
from pg2ref.benchmark.report import cpu_name
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.kernels.machine_limits import path_name
from pg2ref.outputs.result import versions
from pg2ref.published import PUBLISHED

TOOLS = Path(__file__).parent
SCHEMA = "pg2ref/bench-peers/1"
GGUF_OF = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}  # precision -> type of GGUF
LLAMA_PARTS = ("prefill", "decode")
LLAMA_MEASURES = [f"{part} {precision}, llama.cpp" for precision in GGUF_OF for part in LLAMA_PARTS]
MEASURES = [*BARS, "vision share of bf16 peak", *LLAMA_MEASURES]
PAUSE_SECONDS = 0.05  # between the sides' turns
LARGE_PX = 448


class Folders(NamedTuple):
    """What each checkpoint is good for; None where none was given."""

    plain: Path | None  # bf16
    large: Path | None  # bf16, 448 px
    int8: Path | None
    int4: Path | None


class Contest(NamedTuple):
    """Two processes that take turns at some parts of the model."""

    own: tuple[str, str, str]  # runtime, folder, precision
    peer: tuple[str, str, str]
    parts: Mapping[str, str]  # measure -> part


class Worker:
    """A runtime in a process of its own; it sleeps until it is asked."""

    def __init__(
        self, runtime: str, folder: str, precision: str, new_tokens: int, environment: Mapping[str, str]
    ) -> None:
        command = [sys.executable, str(TOOLS / "peer_runtimes.py"), runtime, folder, precision, str(new_tokens)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )
        self.name = self._answer()

    def seconds(self, part: str) -> float:
        """Have it compute a part, once the other side's threads have ceased to spin."""
        time.sleep(PAUSE_SECONDS)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{part}\n")
        return float(self._answer())

    def close(self) -> None:
        """End it, and with it its memory."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"{' '.join(map(str, self._process.args))} ended: see above")  # type: ignore[arg-type]
        return json.loads(line)


def sort_folders(folders: Sequence[Path]) -> Folders:
    """By the type of the weights and the image size in their files."""
    found: dict[str, Path] = {}
    for folder in folders:
        checkpoint = load_checkpoint(folder)
        is_large = checkpoint.config.vision.image_size == LARGE_PX
        kind = checkpoint.weight_type if checkpoint.manifest else "large" if is_large else "plain"
        if kind in found:
            raise click.UsageError(f"{found[kind]} and {folder} are both {kind}: give one of each kind")
        found[kind] = folder
    return Folders(*(found.get(kind) for kind in Folders._fields))


def contests(folders: Folders) -> Iterator[Contest]:
    """All that the folders allow, each peer once."""
    plain, large = str(folders.plain), str(folders.large)
    if folders.plain:
        parts = {"vision bf16": "vision", "prefill bf16": "prefill", "decode bf16": "decode"}
        yield Contest(("pg2ref", plain, BF16), ("transformers", plain, BF16), parts)
    if folders.large:
        parts = {"vision + prefill at 448": "vision+prefill"}
        yield Contest(("pg2ref", large, BF16), ("transformers", large, BF16), parts)
    if folders.plain:
        yield Contest(("pg2ref", plain, F32), ("transformers", plain, F32), {"prefill f32": "prefill"})
    quantized = (
        ("int8", folders.int8, {"prefill int8": "prefill", "decode int8": "decode"}),
        ("int4", folders.int4, {"decode int4": "decode"}),
    )
    for precision, folder, parts in quantized:
        if folder and folders.plain:
            yield Contest(("pg2ref", str(folder), precision), ("pg2ref", plain, BF16), parts)


def llama_contests(folders: Folders, files: Sequence[Path]) -> Iterator[Contest]:
    """Each GGUF file beside the folder whose weights are stored alike; its name says how: NAME.q8_0.gguf.

    Raises:
        click.UsageError: there is no such folder, or the name says nothing.
    """
    own = {"bf16": folders.plain, "int8": folders.int8, "int4": folders.int4}
    for path in files:
        kind = path.with_suffix("").suffix.removeprefix(".")
        precision = next((precision for precision, stored in GGUF_OF.items() if stored == kind), None)
        folder = own[precision] if precision else None
        if folder is None:
            expected = " or ".join(f"NAME.{GGUF_OF[name]}.gguf" for name, folder in own.items() if folder)
            raise click.UsageError(f"{path}: expected {expected}, for which there is a folder of like weights")
        parts = {f"{part} {precision}, llama.cpp": part for part in LLAMA_PARTS}
        yield Contest(("pg2ref", str(folder), str(precision)), ("llama.cpp", str(path), kind), parts)


def run_contest(contest: Contest, repeat: int, new_tokens: int, environment: Mapping[str, str]) -> Iterator[Row]:
    """A row a measure; the sides alternate part by part."""
    with ExitStack() as stack:
        sides = []
        for side in (contest.own, contest.peer):
            worker = Worker(*side, new_tokens, environment)
            stack.callback(worker.close)
            sides.append(worker)
        runs: dict[str, tuple[list[float], list[float]]] = {measure: ([], []) for measure in contest.parts}
        for repetition in range(repeat):
            say(f"{contest.peer[0]} {contest.peer[2]}: repetition {repetition + 1} of {repeat}")
            for measure, part in contest.parts.items():
                for worker, found in zip(sides, runs[measure], strict=True):
                    found.append(1e3 * worker.seconds(part))
    for measure, part in contest.parts.items():
        unit = "ms/token" if part == "decode" else "ms"
        own, peer = (Side(worker.name, found, unit) for worker, found in zip(sides, runs[measure], strict=True))
        yield Row(measure, own, peer)


def whole_process(folder: Path, repeat: int, environment: Mapping[str, str]) -> Iterator[Row]:
    """From the start of a process to its first token: an image file, warm page cache and kernel cache."""
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "image.png"
        Image.fromarray(synthetic_image()).save(image)
        own = own_command(folder, image)
        peer = [sys.executable, str(TOOLS / "peer_first_token.py"), str(folder), str(image), DEFAULT_PROMPT]
        runs: tuple[list[float], list[float]] = ([], [])
        for repetition in range(-1, repeat):  # the first warms the caches
            say(f"whole process: repetition {repetition + 1} of {repeat}")
            for command, found in zip((own, peer), runs, strict=True):
                seconds = run(command, environment, watch=False).seconds
                if repetition >= 0:
                    found.append(1e3 * seconds)
        yield Row("whole process", Side("pg2ref bf16", runs[0], "ms"), Side("Transformers bf16", runs[1], "ms"))
        say("anonymous memory")
        peak = run(own, environment).peaks.anonymous / 1e6
        yield Row("anonymous memory", Side("pg2ref bf16", [peak], "MB"), note="peak, beside the mapped weight files")


def own_command(folder: Path, image: Path) -> list[str]:
    """`pg2ref generate`, to the first token."""
    arguments = [str(image), "-m", str(folder), "-p", DEFAULT_PROMPT, "-n", "1", "--precision", BF16]
    return [sys.executable, "-m", "pg2ref", "generate", *arguments]


def shares(folder: Path, repeat: int, environment: Mapping[str, str]) -> Iterator[Row]:
    """`pg2ref bench`: how near to the machine's limits, measured in its own run."""
    say("shares of the machine's limits")
    command = [sys.executable, "-m", "pg2ref", "bench", "-m", str(folder), "--precision", BF16, "--json"]
    report = json.loads(run([*command, "--repeat", str(repeat)], environment, watch=False).stdout)
    for name, limit in (("vision", "bf16 peak"), ("prefill", "bf16 peak"), ("decode", "read bandwidth")):
        part, most = report["measures"][name], report["limits"]["read" if name == "decode" else BF16]
        runs = [100 * least / taken for least, taken in zip(part["limit_ms"], part["runs_ms"], strict=True)]
        note = f"limit {most['median']:,.1f} {most['unit']}"
        if name == "decode":
            note += f", of the mapped files {report['limits']['mapped']['median']:,.1f}"
        yield Row(f"{name} share of {limit}", Side("pg2ref bf16", runs, "%"), note=note)


def all_rows(
    folders: Folders,
    files: Sequence[Path],
    wanted: Sequence[str],
    repeat: int,
    new_tokens: int,
    environment: Mapping[str, str],
) -> Iterator[Row]:
    """Every measure that is wanted and that the folders allow."""

    def is_wanted(measure: str) -> bool:
        return not wanted or measure in wanted

    for contest in (*contests(folders), *llama_contests(folders, files)):
        parts = {measure: part for measure, part in contest.parts.items() if is_wanted(measure)}
        if parts:
            yield from run_contest(contest._replace(parts=parts), repeat, new_tokens, environment)
    if folders.plain:
        if any(map(is_wanted, ("whole process", "anonymous memory"))):
            yield from whole_process(folders.plain, repeat, environment)
        if any(is_wanted(measure) for measure in MEASURES if " share of " in measure):
            yield from shares(folders.plain, repeat, environment)


def describe(folders: Folders, threads: int, repeat: int) -> str:
    """The README's line above the table."""
    folder = next(folder for folder in folders if folder)
    config = load_checkpoint(folder).config
    size = next((name for name, known in PUBLISHED.items() if known == config), "a size of its own")
    own = versions()
    return (
        f"{cpu_name()}, path `{path_name()}`, {threads} threads on each side, PaliGemma 2 {size}, medians of {repeat} "
        f"runs that take turns; Numba {own['numba']}, Python {own['python']}."
    )


def say(text: str) -> None:
    """Progress, on stderr."""
    click.echo(text, err=True)


@click.command(help=help_of(__doc__))
@click.argument("folder", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1))
@click.option("--new-tokens", default=8, show_default=True, type=click.IntRange(1), help="Decoded in each repetition.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="Of each side.")
@click.option("--measures", multiple=True, type=click.Choice(MEASURES), help="These only; may be repeated.")
@click.option(
    "--gguf", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="For llama.cpp."
)
@click.option("--bars", is_flag=True, help="Say of each measure whether it meets its bar.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Every run as JSON.")
@click.option(
    "--readme",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Put the table there, between the marks of this processor's path.",
)
def main(
    folder: tuple[Path, ...],
    repeat: int,
    new_tokens: int,
    threads: int,
    measures: tuple[str, ...],
    gguf: tuple[Path, ...],
    bars: bool,
    output: Path | None,
    readme: Path | None,
) -> None:
    """Measure, print, write."""
    folders = sort_folders(folder)
    text = readme.read_text(encoding="utf-8") if readme else ""
    if readme:
        peer_table.replace_block(text, "", path_name())  # raises before anything is measured
    count = str(threads)
    environment = os.environ | {"OMP_NUM_THREADS": count, "NUMBA_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}
    rows = [
        row
        for row in all_rows(folders, gguf, measures, repeat, new_tokens, environment)
        if not measures or row.measure in measures
    ]
    judged = BARS if bars else {}
    click.echo(peer_table.plain_table(rows, judged))
    if output:
        content = {"schema": SCHEMA, "cpu": cpu_name(), "threads": threads, "versions": versions()}
        write_whole(output, json.dumps(content | {"rows": [row.to_dict(judged) for row in rows]}, indent=1) + "\n")
    if readme:
        block = peer_table.markdown_table(rows, describe(folders, threads, repeat))
        write_whole(readme, peer_table.replace_block(text, block, path_name()))


def write_whole(path: Path, text: str) -> None:
    """Under a temporary name, renamed when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
