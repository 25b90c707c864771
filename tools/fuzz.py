"""Feeds hostile inputs to the readers of files and answers, and reports what came of each.

    python tools/fuzz.py -n 100000 -o build/fuzz                 # every reader
    python tools/fuzz.py -n 1000 --only image --seed 3 -o build/fuzz
    python tools/fuzz.py --only image --seed 3 --again 417       # one input again, with its traceback

A reader may accept an input or raise a Pg2RefError. Faults are: any other exception, a message that no terminal should
show, a crash of the process, more memory than the target's bound (fuzzing/target.py), more than 20 seconds, a result
that contradicts itself. Each reader runs in a process of its own, so that a crash is laid to the input that caused it
and the rest goes on; the address space is limited too. The folder gets report.json and report.md, in which readers that
are not tried now keep what they had, and one of the same seed and commit goes on where it stopped, so that a long run
can be made in parts. The input of a fault is in report.json. Exit code 1 where there is one. Recorded runs:
tools/fuzzing/report.md.
"""

import faulthandler
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from fuzzing.registry import TARGETS
from fuzzing.trial import Tally, fault, make_input, run_trials, try_input
from tool_help import help_of

SLACK_BYTES = 1 << 28  # address space beside the bound: libraries that are loaded late
PER_PROCESS = 10_000  # inputs: what a process leaks stays small, and a fault is saved soon


def work(name: str, seed: int, indices: range, progress: Path) -> Tally:
    """In the process of one reader: try the inputs, writing down which one is being tried."""
    target, tally = TARGETS[name], Tally()
    make_input(target, seed, 0)  # loads what making takes, before the limit
    faulthandler.enable()
    limit_address_space(target.memory_bound + SLACK_BYTES)
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder, open(progress, "w", encoding="utf-8") as stream:
        for index in run_trials(target, seed, indices, Path(folder), tally):
            stream.seek(0)
            stream.write(f"{index:012d}")
            stream.flush()
    return tally


def memory_folder() -> str | None:
    """Where files cost no disk; None for the usual place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def limit_address_space(more: int) -> None:
    """Let this process grow by so much and no more (Linux)."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        size = int(lines["VmSize"].split()[0]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))


def run_target(name: str, count: int, seed: int, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Try so many inputs of one target in processes of their own, going on behind a crash; its part of the report.

    `earlier` is that of a run before, empty without one.
    """
    made_by = {"seed": seed, "commit": commit()}
    if any(earlier.get(key) != value for key, value in made_by.items()):
        earlier = {}
    started, total = time.perf_counter() - earlier.get("seconds", 0), Tally()
    if earlier:
        total.add(earlier)
    first = total.tried
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        while first < count:
            stop = min(count, first + PER_PROCESS)
            command = [sys.executable, __file__, "--only", name, "--seed", str(seed), "--work", str(first), str(stop)]
            done = subprocess.run([*command, "--progress", str(progress)], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                total.add(json.loads(done.stdout))
                first = stop
                continue
            crashed = int(progress.read_text()) if progress.exists() and progress.stat().st_size else first
            content = make_input(TARGETS[name], seed, crashed)
            what = f"FAULT the process ended with {done.returncode}: {done.stderr.strip()[-1500:]}"
            total.faults.append(fault(crashed, what, "crash", content))
            total.outcomes["FAULT crash"] += 1
            total.tried += crashed + 1 - first  # those before it are counted, their outcomes are lost with the process
            first = crashed + 1
            click.echo(f"{name}: input {crashed} ended the process", err=True)
    seconds = round(time.perf_counter() - started, 1)
    made_by["date"] = f"{datetime.now(UTC):%Y-%m-%d}"
    return total.to_dict() | made_by | {"seconds": seconds, "memory_bound": TARGETS[name].memory_bound}


def commit() -> str:
    """Of the code that runs; a plus says that files differ from it."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def read_report(out: Path | None) -> dict[str, dict[str, Any]]:
    """What a folder's report says of each reader; nothing where there is none."""
    path = None if out is None else out / "report.json"
    return json.loads(path.read_text())["targets"] if path is not None and path.exists() else {}


def write_report(out: Path, reports: Mapping[str, dict[str, Any]]) -> None:
    """All readers' in the order of the registry, for programs and for people."""
    out.mkdir(parents=True, exist_ok=True)
    ordered = {name: reports[name] for name in TARGETS if name in reports}
    (out / "report.json").write_text(json.dumps({"targets": ordered}, indent=1) + "\n")
    (out / "report.md").write_text(table(ordered))


def table(reports: dict[str, dict[str, Any]]) -> str:
    """The report for people, in Markdown."""
    lines = [
        "| reader | inputs | accepted | refused | ways to refuse | faults | slowest, s | most memory, MB | its bound "
        "| seed | commit | date |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        accepted = report["outcomes"].get("read", 0)
        faults = len(report["faults"])
        lines.append(
            f"| {name} | {report['tried']:,} | {accepted:,} | {report['tried'] - accepted - faults:,} | "
            f"{len(report['messages'])} | {faults} | {report['slowest_seconds']:.2f} | "
            f"{report['largest_growth_bytes'] / 1e6:,.1f} | {report['memory_bound'] / 1e6:,.0f} | "
            f"{report['seed']} | {report['commit']} | {report['date']} |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=help_of(__doc__))
@click.option("-n", "--count", default=1000, show_default=True, help="Inputs for each reader.")
@click.option(
    "--only", multiple=True, type=click.Choice(list(TARGETS)), help="This reader; may be given several times."
)
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Where the report goes.")
@click.option("--again", type=int, help="Try this one input of --only here, and let its exception through.")
@click.option("--work", "work_range", type=int, nargs=2, hidden=True)
@click.option("--progress", type=click.Path(path_type=Path), hidden=True)
def main(
    count: int,
    only: tuple[str, ...],
    seed: int,
    out: Path | None,
    again: int | None,
    work_range: tuple[int, int] | None,
    progress: Path | None,
) -> None:
    """Run the readers, or be the process of one."""
    if work_range is not None and progress is not None:
        tally = work(only[0], seed, range(*work_range), progress)
        click.echo(json.dumps(tally.to_dict()))
        return
    if again is not None:
        with tempfile.TemporaryDirectory() as folder:
            target = TARGETS[only[0]]
            click.echo(try_input(target, make_input(target, seed, again), Path(folder)))
        return
    earlier = read_report(out)
    reports: dict[str, dict[str, Any]] = {}
    for name in only or TARGETS:
        reports[name] = run_target(name, count, seed, earlier.get(name, {}))
        click.echo(f"{name}: {dict(reports[name]['outcomes'])}, {reports[name]['seconds']} s", err=True)
        if out is not None:
            write_report(out, earlier | reports)
    click.echo(table(reports), nl=False)
    sys.exit(any(report["faults"] for report in reports.values()))


if __name__ == "__main__":
    main()
