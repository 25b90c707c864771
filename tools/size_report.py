"""Memory and time of one answer in a process of its own: what a checkpoint of some size needs.

    python tools/size_report.py /data/random-28b-int4 tests/data/scene.png -n 8
    python tools/size_report.py /data/random-3b-224 photo.jpg --json -- --precision f32

Runs `pg2ref generate` and looks at its memory meanwhile (tools/watched_process.py says what the kinds of memory mean).
What stands behind `--` goes to `generate`.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from tool_help import help_of
from watched_process import run


@click.command(help=help_of(__doc__), context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("image", type=click.Path(exists=True, dir_okay=False))
@click.argument("more", nargs=-1)
@click.option("-p", "--prompt", default="caption en", show_default=True)
@click.option("-n", "--max-new-tokens", default=8, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(folder: Path, image: str, more: tuple[str, ...], prompt: str, max_new_tokens: int, as_json: bool) -> None:
    """Run, then print."""
    arguments = [image, "-m", str(folder), "-p", prompt, "-n", str(max_new_tokens), *more]
    out, seconds, peaks = run([sys.executable, "-m", "pg2ref", "generate", *arguments, "--json", "--quiet"])
    result = json.loads(out)
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
