"""`pg2ref`: the commands, found by name, and the one place where errors become messages and exit codes.

0 ok, 1 run failed, 2 usage, 3 model not available, 4 input unreadable, 5 checkpoint inconsistent, 130 interrupted.
"""

import io
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from pg2ref.errors import Pg2RefError

COMMANDS = {  # name -> module; one is imported when it is run, so that help is quick
    "generate": "pg2ref.cli.generate",
    "detect": "pg2ref.cli.detect",
    "segment": "pg2ref.cli.segment",
    "trace": "pg2ref.cli.trace",
    "compare": "pg2ref.cli.compare",
    "batch": "pg2ref.cli.batch",
    "score": "pg2ref.cli.score",
    "inspect": "pg2ref.cli.inspect",
    "scene": "pg2ref.cli.scene",
    "tokenize": "pg2ref.cli.tokenize",
    "bench": "pg2ref.cli.bench",
    "quantize": "pg2ref.cli.quantize",
    "merge": "pg2ref.cli.merge",
    "break": "pg2ref.cli.museum",
    "download": "pg2ref.cli.download",
    "doctor": "pg2ref.cli.doctor",
}
INTERRUPTED = 130
READER_GONE = 141  # 128 + SIGPIPE: whoever read our output has closed it


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself would call a closed pipe a failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _leave_closed_pipe()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 run failed, 2 usage, 3 model not available, 4 input unreadable, "
    "5 checkpoint inconsistent, 130 interrupted.",
)
@click.version_option(package_name="pg2ref")
def group() -> None:
    """PaliGemma 2 on a CPU: an image and a prompt in, text out.

    \b
    pg2ref generate photo.jpg -p "caption en" -m google/paligemma2-3b-mix-224
    pg2ref trace photo.jpg -m ./mix -o run.safetensors
    pg2ref inspect google/paligemma2-3b-mix-224
    pg2ref tokenize "detect cat ; dog" -m google/paligemma2-3b-mix-224
    pg2ref quantize -m google/paligemma2-3b-mix-224 -o ./mix-int8 --to int8
    pg2ref merge -m google/paligemma2-3b-pt-224 --adapter ./my-lora -o ./mine
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code; an error is one message on stderr, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an answer may hold what the terminal's encoding lacks
    try:
        group.main(args=arguments, prog_name="pg2ref", standalone_mode=False)
        sys.stdout.flush()
    except Pg2RefError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.Abort:
        _fail("interrupted", INTERRUPTED)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(_in_one_line(error), error.exit_code)
    except BrokenPipeError:
        _leave_closed_pipe()
    except OSError as error:  # of stdout: what is read or written elsewhere has errors of its own
        _give_up_stdout()
        _fail(f"cannot write the output: {error.strerror or error}", 1)
    except MemoryError:
        _fail("not enough memory: try a smaller model or a lower resolution", 1)
    sys.exit(0)


def _in_one_line(error: click.ClickException) -> str:
    """Click's message in the form of ours, with the help page to turn to."""
    message = " ".join(error.format_message().split()).removesuffix(".")
    ctx = getattr(error, "ctx", None)
    return f"{message[:1].lower()}{message[1:]}" + (f"; see `{ctx.command_path} --help`" if ctx else "")


def _give_up_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit does not flush into it


def _leave_closed_pipe() -> NoReturn:
    _give_up_stdout()
    sys.exit(READER_GONE)


def _fail(message: str, exit_code: int) -> NoReturn:
    click.echo(f"pg2ref: {message}", err=True)
    sys.exit(exit_code)
