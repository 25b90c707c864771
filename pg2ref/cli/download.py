"""`pg2ref download`."""

import json
import os
import time
from typing import TYPE_CHECKING

import click

from pg2ref.cli.options import json_option
from pg2ref.cli.progress import ProgressLine
from pg2ref.errors import UsageError

if TYPE_CHECKING:
    from pg2ref.hub.download import Listing

SCHEMA = "pg2ref/download/1"


@click.command("download", short_help="Fetch a checkpoint from the Hugging Face Hub.")
@click.argument("text", metavar="NAME[@REVISION]")
@click.option("--dry-run", is_flag=True, help="Say how much there is to fetch, and fetch nothing.")
@json_option
def command(text: str, dry_run: bool, as_json: bool) -> None:
    """Fetch a checkpoint into the local Hugging Face cache, where -m finds it, and print its folder.

    Config, tokenizer and weights, nothing else. An interrupted download goes on where it stopped; every file is
    checked against its digest, also those that were there. Needs `pip install 'pg2ref[hub]'`. HF_ENDPOINT, HF_TOKEN,
    HF_HUB_CACHE and HF_HUB_OFFLINE mean what they mean to huggingface_hub.

    \b
    pg2ref download google/paligemma2-3b-mix-224
    pg2ref download google/paligemma2-3b-mix-224@refs/pr/1 --dry-run
    pg2ref generate photo.jpg -m "$(pg2ref download google/paligemma2-3b-mix-224)"
    """
    from pg2ref.hub.download import fetch, list_files
    from pg2ref.hub.names import EXAMPLE_ID, parse_name

    name = parse_name(text)
    if name is None:
        raise UsageError(f"{text!r}: expected a name like {EXAMPLE_ID}, or {EXAMPLE_ID}@main")
    started, listing = time.perf_counter(), list_files(name)
    missing = listing.missing_bytes
    click.echo(
        f"{name}: {len(listing.files)} files, {size(listing.total_bytes)}; {size(missing)} to fetch, "
        f"into {listing.snapshot}",
        err=True,
    )
    if not dry_run:
        line = ProgressLine()
        try:
            fetch(listing, Progress(line, listing))
        finally:
            line.clear()
    if as_json:
        click.echo(json.dumps(facts(listing, missing, dry_run, time.perf_counter() - started)))
    elif not dry_run:
        click.echo(listing.snapshot)


def facts(listing: "Listing", missing: int, dry_run: bool, seconds: float) -> dict[str, object]:
    """The JSON object."""
    return {
        "schema": SCHEMA,
        "model": listing.name.model_id,
        "revision": listing.name.revision,
        "commit": listing.commit,
        "folder": os.fspath(listing.snapshot),
        "files": [{"path": file.path, "bytes": file.size, "digest": file.digest} for file in listing.files],
        "bytes": listing.total_bytes,
        "fetched_bytes": 0 if dry_run else missing,
        "missing_bytes": listing.missing_bytes,
        "seconds": round(seconds, 2),
    }


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 10**7 else f"{count / 1e3:.1f} kB"


class Progress:
    """Moves a progress line on: how far, how fast, how long still."""

    def __init__(self, line: ProgressLine, listing: "Listing") -> None:
        self.line, self.started = line, time.monotonic()
        self.totals = {"downloading": listing.missing_bytes, "checking": listing.total_bytes}
        self.done = dict.fromkeys(self.totals, 0)

    def __call__(self, phase: str, count: int) -> None:
        """So many more bytes of a phase are done."""
        self.done[phase] += count
        done, total = self.done[phase], self.totals[phase]
        detail = f"{size(done)} of {size(total)}"
        if phase == "downloading":
            rate = done / max(time.monotonic() - self.started, 1e-3)
            left = (total - done) / rate if rate > 0 else 0
            detail += f", {rate / 1e6:.1f} MB/s, {left // 60:.0f}:{left % 60:02.0f} left"
        self.line.show(phase, min(done, total), max(total, 1), detail)
