"""Memory and time of one answer in a process of its own: what a checkpoint of some size needs.

    python tools/size_report.py /data/random-28b-int4 tests/data/scene.png -n 8
    python tools/size_report.py /data/random-3b-224 photo.jpg --json -- --precision f32

Runs `pg2ref generate` and samples /proc (Linux). Mapped pages of the weights are shared with other processes and given
back when the system needs them; anonymous memory is the process's alone. What stands behind `--` goes to `generate`.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

SECONDS_BETWEEN = 0.005
FIELDS = {"RssAnon": "anonymous", "RssFile": "mapped", "VmRSS": "resident"}


@dataclass
class Peaks:
    """Largest values seen, in bytes; each at its own moment."""

    anonymous: int = 0
    mapped: int = 0
    resident: int = 0

    def sample(self, pid: int) -> None:
        """Look once."""
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in FIELDS:  # a process that has ended has none
                size = int(value.split()[0]) << 10
                setattr(self, FIELDS[name], max(size, getattr(self, FIELDS[name])))


def run(arguments: list[str]) -> tuple[dict[str, Any], Peaks, float]:
    """Run `pg2ref generate`: its JSON, its peaks, and the seconds of the whole process."""
    peaks, started = Peaks(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        command = [sys.executable, "-m", "pg2ref", "generate", *arguments, "--json", "--quiet"]
        process = subprocess.Popen(command, stdout=out)
        while process.poll() is None:
            peaks.sample(process.pid)
            time.sleep(SECONDS_BETWEEN)
        seconds = time.perf_counter() - started
        if process.returncode:
            sys.exit(process.returncode)
        out.seek(0)
        return json.load(out), peaks, seconds


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("image", type=click.Path(exists=True, dir_okay=False))
@click.argument("more", nargs=-1)
@click.option("-p", "--prompt", default="caption en", show_default=True)
@click.option("-n", "--max-new-tokens", default=8, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(folder: Path, image: str, more: tuple[str, ...], prompt: str, max_new_tokens: int, as_json: bool) -> None:
    """Run, then print."""
    arguments = [image, "-m", str(folder), "-p", prompt, "-n", str(max_new_tokens), *more]
    result, peaks, seconds = run(arguments)
    model, timing, tokens = result["model"], result["timing"], len(result["tokens"])
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if as_json:
        facts = {"folder": str(folder), "stored_bytes": stored, "model": model, "timing": timing, "tokens": tokens}
        click.echo(json.dumps(facts | {"process_s": seconds, "peak_bytes": asdict(peaks)}))
        return
    click.echo(f"{folder}: {stored / 1e9:.2f} GB {model['weights']}, computed in {model['dtype']}")
    click.echo(
        f"peaks: {peaks.anonymous / 1e6:,.0f} MB anonymous, {peaks.mapped / 1e6:,.0f} MB mapped, "
        f"{peaks.resident / 1e6:,.0f} MB together"
    )
    click.echo(
        f"seconds: load {timing['load_s']:.2f}, vision {timing['vision_s']:.2f}, prefill {timing['prefill_s']:.2f}, "
        f"decode {timing['decode_s']:.2f} for {tokens - 1} tokens; the whole process {seconds:.2f}"
    )


if __name__ == "__main__":
    main()
