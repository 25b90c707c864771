"""What can be said of an answer beside its text."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pg2ref.api import Model
    from pg2ref.outputs.result import Result


def print_tokens(result: "Result") -> None:
    """A line a token, with its likeliest rivals."""
    for token in result.tokens:
        rivals = "  ".join(f"{other.text!r} {other.logprob:.3f}" for other in token.top)
        click.echo(f"{token.logprob:8.3f}  {token.text!r:<16} {rivals}")


def describe(model: "Model") -> None:
    """What was found, for --verbose."""
    checkpoint = model.checkpoint
    size, computed = checkpoint.total_bytes / 1e9, model.described
    click.echo(
        f"{checkpoint.folder}: {size:.2f} GB {checkpoint.weight_type}, computed in {computed['dtype']} by "
        f"{computed['backend']}",
        err=True,
    )
    for adapter in model.adapters:
        click.echo(
            f"{adapter.folder}: {len(adapter.low_rank)} matrices adapted, {len(adapter.replaced)} tensors replaced",
            err=True,
        )


def describe_time(result: "Result") -> None:
    """How long each phase took, for --verbose."""
    timing = result.timing
    click.echo(
        f"vision {timing.vision_s:.2f} s, prompt {timing.prefill_s:.2f} s, "
        f"answer {timing.decode_s:.2f} s for {len(result.tokens)} tokens",
        err=True,
    )
