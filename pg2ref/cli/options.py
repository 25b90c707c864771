"""Options that several commands share, and the model they choose."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pg2ref.errors import UsageError
from pg2ref.policy import BACKENDS, PRECISIONS, PRESETS, RESIZE_POLICIES, WINDOW_POLICIES

if TYPE_CHECKING:
    from pg2ref.api import Model

Command = TypeVar("Command", bound=Callable[..., Any])
THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def decorator_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator; help lists them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


model_option = click.option(
    "-m",
    "--model",
    "name",
    metavar="MODEL",
    help="A checkpoint folder, org/name[@revision] in the local Hugging Face cache, an .npz of big_vision, or "
    "pg2ref-shapes, the built-in model for synthetic scenes, which answers by default.",
)
adapter_option = click.option(
    "--adapter",
    "adapters",
    metavar="DIR",
    multiple=True,
    help="A LoRA folder as peft writes it; may be given several times.",
)
tokenizer_option = click.option(
    "--tokenizer",
    "tokenizer_file",
    metavar="FILE",
    help="tokenizer.model or tokenizer.json. Default: that in the model's folder.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
length_option = click.option(
    "-n", "--max-new-tokens", default=256, show_default=True, help="Stop after so many tokens at the latest."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress and no warnings.")
# How tokens are chosen, where one is chosen at a time.
sampling_options = decorator_of(
    click.option("--temperature", default=0.0, show_default=True, help="0: the best token each time; above 0: drawn."),
    click.option("--top-k", type=int, help="Draw from so many best tokens only, from all if unset (Transformers: 50)."),
    click.option("--top-p", type=float, help="Draw from the best tokens that hold this share of the probability."),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        help="Of the draws: the same seed, the same answer. `generate` without an image draws this scene.",
    ),
)


def _limit_threads(ctx: click.Context, parameter: click.Parameter, threads: int | None) -> None:
    """NumPy's BLAS reads these variables once, when it is loaded: no command module may import it at its top."""
    if threads is not None and "numpy" not in sys.modules:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


threads_option = click.option(
    "--threads",
    type=click.IntRange(1),
    is_eager=True,
    expose_value=False,
    callback=_limit_threads,
    help="Threads for matrix products; all cores by default, but one for the built-in model.",
)


# How to compute: precision, backend, threads, and the choices where libraries differ.
computation_options = decorator_of(
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="Of the inputs of linear layers. Default: that of the weights if they are quantised; bf16 where the "
        "processor multiplies bf16 and the weights are bf16; else f32. f64 is slow, and there to check the "
        "others with.",
    ),
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        help="numba: the kernels, compiled once on first use; numpy: the reference, many times slower. "
        "Default: numba, but numpy for f64.",
    ),
    threads_option,
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        default="transformers",
        show_default=True,
        help="Whose choices to follow where libraries differ.",
    ),
    click.option(
        "--resize",
        type=click.Choice(RESIZE_POLICIES),
        help="How the image is resized, whatever the preset says.",
    ),
    click.option(
        "--window",
        type=click.Choice(WINDOW_POLICIES),
        help="What a sliding window hides, whatever the preset says; matters at 896 px.",
    ),
)


def required_model(name: str | None) -> str:
    """The model's name, for commands that do not answer: they fall back on none."""
    if name is None:
        raise UsageError(
            "no model given: add -m FOLDER, or -m google/paligemma2-3b-mix-224 once it is in the Hugging Face cache, "
            "or -m pg2ref-shapes, the built-in one"
        )
    return name


def open_model(name: str | None, *, quiet: bool = False, **choices: Any) -> "Model":
    """Load the model, the built-in one by default, and say so; NumPy is imported here, after --threads."""
    if name is None and "numpy" not in sys.modules:
        for variable in THREAD_VARIABLES:
            os.environ.setdefault(variable, "1")  # its matrices are too small to be shared among threads
    from pg2ref.api import load

    model = load(name, **choices)
    if model.described["builtin"] and not quiet:
        from pg2ref.hub.names import EXAMPLE_ID

        click.echo(
            f"pg2ref: {model.described['id']} answers, the built-in model for synthetic scenes, not Google's; for "
            f"photographs `pg2ref download {EXAMPLE_ID}`, then -m {EXAMPLE_ID}",
            err=True,
        )
    return model
