"""`pg2ref doctor`."""

import json

import click

from pg2ref.cli.options import json_option, threads_option


@click.command("doctor", short_help="What this machine is, and which models it can run.")
@threads_option
@json_option
def command(as_json: bool) -> None:
    """Say what matters here: versions, processor, kernels, memory, checkpoints in the cache, and which sizes fit.

    \b
    pg2ref doctor
    pg2ref doctor --json | jq '.sizes[] | select(.verdict == "fits")'
    """
    from pg2ref.doctor.report import diagnose, to_lines

    found = diagnose()
    click.echo(json.dumps(found) if as_json else "\n".join(to_lines(found)))
