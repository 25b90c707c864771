"""`pg2ref merge`."""

import json
import os
import time
from pathlib import Path
from typing import Any

import click

from pg2ref.cli.options import adapter_option, json_option, model_option, required_model
from pg2ref.cli.progress import Counter
from pg2ref.errors import UsageError

SCHEMA = "pg2ref/merge/1"


@click.command("merge", short_help="Write a checkpoint with an adapter in its weights.")
@model_option
@adapter_option
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The new folder.")
@json_option
def command(name: str | None, adapters: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Write a copy of a checkpoint with LoRA adapters added to its weights: for other programs, or to quantise it.

    pg2ref itself needs no copy: `--adapter` of the other commands computes with both. OUT appears when it is complete,
    with the names and types of the checkpoint.

    \b
    pg2ref merge -m google/paligemma2-3b-pt-224 --adapter ./my-lora -o ./mine
    pg2ref quantize -m ./mine -o ./mine-int4 --to int4
    """
    model_name = required_model(name)
    if not adapters:
        raise UsageError("no adapter given: add --adapter FOLDER, as peft's save_pretrained wrote it")
    from pg2ref.adapters.adapter import read_adapter
    from pg2ref.adapters.merge import merge_checkpoint
    from pg2ref.checkpoint.open import open_checkpoint

    started, source = time.perf_counter(), open_checkpoint(model_name)
    read = [read_adapter(Path(adapter), source.config) for adapter in adapters]
    with Counter("merging", source.total_bytes) as count:
        merged = merge_checkpoint(source, read, out, on_bytes=count)
    seconds = round(time.perf_counter() - started, 2)
    if as_json:
        facts: dict[str, Any] = {
            "schema": SCHEMA,
            "source": model_name,
            "adapters": list(adapters),
            "folder": os.fspath(out),
        }
        facts |= {"matrices_adapted": merged.adapted, "tensors_replaced": merged.replaced}
        click.echo(json.dumps({**facts, "bytes": merged.total_bytes, "seconds": seconds}))
    else:
        click.echo(
            f"{out}: {merged.adapted} matrices adapted, {merged.replaced} tensors replaced, "
            f"{merged.total_bytes / 1e9:.2f} GB, {seconds:.0f} s"
        )
