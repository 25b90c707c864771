"""`pg2ref break`."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pg2ref.cli.options import computation_options, json_option, model_option, open_model, required_model
from pg2ref.cli.stdin import read_stdin
from pg2ref.errors import UsageError

if TYPE_CHECKING:
    from pg2ref.api import Model
    from pg2ref.parity.bugs.run import Bug
    from pg2ref.parity.effect import Candidate, Effect

SCHEMA = "pg2ref/break/1"


@click.command("break", short_help="Run the model with a mistake that ports make, beside the right one.")
@click.argument("images", nargs=-1, metavar="[IMAGE...]")
@click.option("--bug", "bug_name", metavar="NAME", help="The mistake; --list has all of them.")
@click.option("--list", "as_list", is_flag=True, help="Say what mistakes there are, and where they happened.")
@model_option
@click.option("-p", "--prompt", default="caption en", show_default=True, help="The task; `-` reads it from stdin.")
@click.option(
    "-n",
    "--max-new-tokens",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="How long the answers are at most.",
)
@computation_options
@json_option
def command(
    images: tuple[str, ...],
    bug_name: str | None,
    as_list: bool,
    name: str | None,
    prompt: str,
    max_new_tokens: int,
    as_json: bool,
    **computed: Any,
) -> None:
    """Run a model with one mistake of another port, and show what it does to the logits and to the text.

    Each line after the first few is a place of the right answer, both models given the same tokens before it: the
    divergence of the broken distribution (KL, nats), the largest change of a logit, and the likeliest tokens of both.

    \b
    pg2ref break --list
    pg2ref break photo.jpg --bug causal-prefix -m ./paligemma2-3b-mix-224
    pg2ref break photo.jpg --bug missing-final-cap -m ./paligemma2-3b-mix-224 -p "detect cat" --json
    """
    from pg2ref.parity.bugs.collection import BUGS, find_bug

    if as_list:
        print_list(list(BUGS.values()), as_json)
        return
    if bug_name is None:
        raise UsageError("no bug given: add --bug NAME, or --list to see what there is")
    bug = find_bug(bug_name)
    if not images:
        raise UsageError("no image given: expected at least one to ask the models about")
    required_model(name)
    sources, prompt = read_stdin(images, prompt)
    model = open_model(name, **computed)
    from pg2ref.parity.effect import effect_of, prepare_run

    effect = effect_of(bug, prepare_run(model, sources, prompt), max_new_tokens)
    if as_json:
        click.echo(json.dumps(to_dict(bug, effect, model), ensure_ascii=False))
    else:
        print_effect(bug, effect, model)


def print_list(bugs: Sequence["Bug"], as_json: bool) -> None:
    """A paragraph a bug."""
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "bugs": [about(bug) for bug in bugs]}))
        return
    for bug in bugs:
        click.echo(f"{bug.name}\n    {bug.summary}")
        for link in bug.links:
            click.echo(f"    {link}")


def about(bug: "Bug") -> dict[str, Any]:
    """What a bug is, for JSON."""
    return {"name": bug.name, "summary": bug.summary, "shows_in": bug.shows_in, "seen": bug.links}


def to_dict(bug: "Bug", effect: "Effect", model: "Model") -> dict[str, Any]:
    """Everything, for JSON."""
    first = effect.first_change
    return {
        "schema": SCHEMA,
        "model": model.described,
        "bug": about(bug),
        "first_change": {"stage": first.stage, "nrmse": first.nrmse} if first else None,
        "right": {"text": text_of(effect.right_ids, model), "token_ids": effect.right_ids},
        "broken": {"text": text_of(effect.broken_ids, model), "token_ids": effect.broken_ids},
        "places": [
            {
                "kl": place.kl,
                "max_change": place.max_change,
                "right": [candidate_to_dict(candidate, model) for candidate in place.right],
                "broken": [candidate_to_dict(candidate, model) for candidate in place.broken],
            }
            for place in effect.places
        ],
    }


def candidate_to_dict(candidate: "Candidate", model: "Model") -> dict[str, Any]:
    """A token with its probability."""
    piece = model.tokenizer.piece(candidate.token_id)
    return {"token_id": candidate.token_id, "piece": piece, "probability": candidate.probability}


def text_of(ids: Sequence[int], model: "Model") -> str:
    """An answer as text, its end left out."""
    return model.tokenizer.detokenize(i for i in ids if i not in model.config.eos_token_ids)


def print_effect(bug: "Bug", effect: "Effect", model: "Model") -> None:
    """The two answers, then a line a place."""
    click.echo(f"{bug.name}: {bug.summary}")
    for link in bug.links:
        click.echo(f"  {link}")
    click.echo(f"right:  {text_of(effect.right_ids, model)!r}")
    click.echo(f"broken: {text_of(effect.broken_ids, model)!r}")
    first = effect.first_change
    if first is None and effect.right_ids == effect.broken_ids and not any(place.max_change for place in effect.places):
        click.echo("This model and input are the same with it and without.")
        return
    if first is not None:
        size = "another shape" if first.nrmse is None else f"relative change {first.nrmse:.2g}"
        click.echo(f"first change: {first.stage}, {size}")
    click.echo(f"\n{'KL':>9} {'max change':>10}  likeliest, right | broken")
    for place in effect.places:
        right, broken = (
            " ".join(f"{model.tokenizer.piece(one.token_id)!r} {one.probability:.1%}" for one in candidates[:3])
            for candidates in (place.right, place.broken)
        )
        click.echo(f"{place.kl:9.2g} {place.max_change:10.2g}  {right} | {broken}")
