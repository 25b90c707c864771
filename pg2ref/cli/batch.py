"""`pg2ref batch`."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from pg2ref.cli.files import check_writable
from pg2ref.cli.objects import reading_options
from pg2ref.cli.options import (
    adapter_option,
    computation_options,
    length_option,
    model_option,
    open_model,
    quiet_option,
    required_model,
    sampling_options,
    tokenizer_option,
)
from pg2ref.cli.progress import ProgressLine
from pg2ref.errors import InputError, Pg2RefError, UsageError

if TYPE_CHECKING:
    from pg2ref.batch.resume import ResultsFile
    from pg2ref.batch.rows import Row
    from pg2ref.batch.run import Outcome

ANSWER_OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "logprobs")


def parse_shard(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    """`2/4` as (2, 4)."""
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"{value!r}: expected i/n with i from 1 to n, 2/4 say")
    return int(found[1]), int(found[2])


@click.command("batch", short_help="Answer many prompts: JSON lines in, JSON lines out.")
@click.argument("source", metavar="IN")
@model_option
@adapter_option
@tokenizer_option
@click.option("-o", "--out", required=True, metavar="FILE", help="The results, a line a row; `-`: stdout.")
@click.option("-p", "--prompt", help="For rows without one, and for all images of a folder.")
@length_option
@sampling_options
@click.option("--logprobs", default=0, show_default=True, metavar="K", help="Report the K likeliest in each place.")
@click.option(
    "--together",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="How many rows decode at a time. Each needs memory for the keys and values of its tokens.",
)
@click.option("--resume", is_flag=True, help="Go on where a stopped run of the same command ended.")
@click.option(
    "--shard",
    callback=parse_shard,
    default="1/1",
    metavar="I/N",
    help="Every Nth row, from the Ith on.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: on the nodes of a Ray cluster, with the `ray` extra.",
)
@click.option("--ray-address", metavar="ADDRESS", help="Default: that in RAY_ADDRESS, else one is started here.")
@reading_options
@computation_options
@quiet_option
def command(
    source: str,
    name: str | None,
    out: str,
    prompt: str | None,
    resume: bool,
    shard: tuple[int, int],
    quiet: bool,
    **options: Any,
) -> None:
    """Answer every row of IN, a file of JSON lines (`-`: stdin), or ask one prompt about every image of a folder IN.

    \b
    {"id": "kitchen-7", "image": "kitchen/7.jpg", "prompt": "detect cat"}
    {"id": 8, "images": ["left.png", "right.png"], "prompt": "answer en both show a dog"}
    {"video": "clip.mp4", "frames": 16, "stride": 30, "max_new_tokens": 40}

    Of each row, one of image, images and video is needed; paths start at IN's folder. A row's result is the JSON object
    of `pg2ref generate --json`, number for number, with the row's id (its number if it has none) and number; for a row
    that fails, {"schema": "pg2ref/error/1", "id", "row", "message", "exit_code"}. Results are in the order of the rows.
    If any failed, the exit code is 1.

    Until all are done they are in FILE.part, whole lines at any time; after Ctrl-C, a crash or a power cut, the same
    command with --resume goes on there.

    \b
    pg2ref batch questions.jsonl -o answers.jsonl -m ./paligemma2-3b-mix-224
    pg2ref batch photos/ -o captions.jsonl -p "caption en" -m ./paligemma2-3b-mix-224 --resume
    pg2ref batch questions.jsonl -o 2-of-4.jsonl --shard 2/4 -m ./paligemma2-3b-mix-224
    pg2ref batch /data/questions.jsonl -o answers.jsonl -m /data/mix --engine ray --ray-address 10.0.0.1:6379
    """
    model_name = required_model(name)
    if out == "-" and resume:
        raise UsageError("--resume goes on in a file: give --out a name")
    check_writable(out)
    with ExitStack() as stack:
        rows, total = open_rows(source, prompt, shard, stack, absolute=options["engine"] == "ray")
        made_by = {"id": model_name, "adapters": list(options["adapters"])}
        results = open_results(out, resume, made_by, stack) if out != "-" else None
        if results is not None and results.is_complete:
            results.check_complete(rows)
            say(f"{out} is complete", quiet)
            failed = results.failed
        else:
            done = results.skip_done(rows) if results is not None else 0
            outcomes = answer(model_name, rows, quiet=quiet, **options)
            failed = write_outcomes(outcomes, results, Progress(done, total, quiet))
            if results is not None:
                results.finish()
                failed += results.failed
    if failed:
        raise Pg2RefError(f"{failed} rows failed: their lines in {out} say why")


def open_rows(
    source: str, prompt: str | None, shard: tuple[int, int], stack: ExitStack, *, absolute: bool
) -> tuple[Iterator["Row"], int | None]:
    """The rows of this shard, and how many they are, unless they come from a pipe."""
    from pg2ref.batch.rows import count_rows, folder_rows, read_rows
    from pg2ref.inputs.video import list_pictures

    index, count = shard
    place = os.path.abspath(source) if absolute else source
    total: int | None = None
    if os.path.isdir(source):
        if prompt is None:
            raise UsageError("a folder of images needs a prompt: add -p")
        rows, total = folder_rows(Path(place), prompt), len(list_pictures(Path(place)))
    elif source == "-":
        rows = read_rows(sys.stdin.buffer, Path.cwd() if absolute else Path(), prompt)
    else:
        lines = open_lines(source, stack)
        total = count_rows(lines) if lines.seekable() else None
        rows = read_rows(lines, Path(place).parent, prompt)
    mine = islice(rows, index - 1, None, count)
    return mine, None if total is None else len(range(index - 1, total, count))


def open_lines(source: str, stack: ExitStack) -> BinaryIO:
    """The file, closed with the stack."""
    try:
        return stack.enter_context(open(source, "rb"))
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or error
        raise InputError(f"{source}: expected JSON lines or a folder of images, got: {got}; check the path") from error


def open_results(out: str, resume: bool, made_by: dict[str, Any], stack: ExitStack) -> "ResultsFile":
    """The file of results, let go of with the stack."""
    from pg2ref.batch.resume import ResultsFile

    return stack.enter_context(closing(ResultsFile(Path(out), resume=resume, model=made_by)))


def answer(
    name: str,
    rows: Iterator["Row"],
    *,
    engine: str,
    ray_address: str | None,
    together: int,
    quiet: bool,
    **options: Any,
) -> Iterator["Outcome"]:
    """The outcomes of the rows, made here or on a cluster."""
    from pg2ref.generation.options import AnswerOptions

    answer_options = AnswerOptions(**{key: options.pop(key) for key in ANSWER_OPTIONS})
    if engine == "ray":
        from pg2ref.batch.ray_engine import answer_rows_on_ray

        return answer_rows_on_ray({"name": name, **options}, rows, answer_options, together, ray_address)
    from pg2ref.batch.run import answer_rows

    return answer_rows(open_model(name, quiet=quiet, **options), rows, answer_options, together)


def write_outcomes(outcomes: Iterator["Outcome"], results: "ResultsFile | None", progress: "Progress") -> int:
    """Write each line as it comes; how many of them are errors."""
    failed, stdout = 0, sys.stdout
    progress.show()
    try:
        with redirect_stdout(sys.stderr):  # Ray prints there what it thinks of its workers
            for outcome in outcomes:
                progress.line.clear()
                if results is None:
                    click.echo(outcome.line, file=stdout)
                else:
                    results.append(str(outcome.line))
                failed += outcome.failed
                progress.advance()
    except KeyboardInterrupt:
        progress.line.clear()
        if results is not None:
            say(f"{progress.done} rows are in {results.part}: --resume goes on", progress.quiet)
        raise
    finally:
        progress.line.clear()
    return failed


def say(message: str, quiet: bool) -> None:
    """A remark on stderr."""
    if not quiet:
        click.echo(f"pg2ref: {message}", err=True)


class Progress:
    """How many rows are done, how fast it goes and how long it will take, on a terminal."""

    def __init__(self, done: int, total: int | None, quiet: bool) -> None:
        self.line, self.quiet = ProgressLine(enabled=not quiet), quiet
        self.begun_with, self.done, self.total = done, done, total
        self.started = time.monotonic()

    def advance(self) -> None:
        """One more."""
        self.done += 1
        self.show()

    def show(self) -> None:
        """`12/200, 0.31 rows/s, 10:06 left`."""
        elapsed, made = time.monotonic() - self.started, self.done - self.begun_with
        text = f"{self.done}/{'?' if self.total is None else self.total}"
        if made:
            text += f", {made / elapsed:.2f} rows/s"
            if self.total is not None:
                left = round((self.total - self.done) * elapsed / made)
                text += f", {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
        self.line.show("rows", self.done, max(self.done + 1 if self.total is None else self.total, 1), text)
