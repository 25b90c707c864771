"""Every error a user can cause: one small family, each with the exit code of the command line.

A message says what was expected, what came, and what to do next, in one line where it can. Errors are raised
where the user's input enters (files, options, public functions), never in inner loops.
"""

import reprlib

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 120
LONG_NAME, LONG_PATH = 100, 1000  # characters, from which on they are cut


def brief(value: object) -> str:
    """A value out of a foreign file, escaped and cut short, for a message of one line."""
    return _BRIEF.repr(value)


def shown_name(name: str, longest: int = LONG_NAME) -> str:
    """A name that somebody else chose, for a message of one line: as `brief` where it is unprintable or long."""
    return name if name.isprintable() and len(name) < longest else brief(name)


def shown_path(path: str) -> str:
    """Likewise the path of a file; of blanks in it one is shown."""
    return shown_name(" ".join(path.split()), LONG_PATH)


class Pg2RefError(Exception):
    """Root of the family; the command line prints the message and exits with `exit_code`."""

    exit_code = 1


class UsageError(Pg2RefError):
    """The call itself makes no sense: two options that exclude each other, a value out of range."""

    exit_code = 2


class ModelNotAvailableError(Pg2RefError):
    """There is no model at the given name or folder."""

    exit_code = 3


class InputError(Pg2RefError):
    """An image or another input file cannot be read."""

    exit_code = 4


class PromptError(InputError):
    """A prompt cannot be laid out: the number of `<image>` marks and of images differ, say."""


class CheckpointError(Pg2RefError):
    """A checkpoint's files contradict each other, the format or the model."""

    exit_code = 5


class ConfigError(CheckpointError):
    """config.json lacks a field, or holds one that pg2ref does not know how to compute."""


class ShapeError(Pg2RefError):
    """An array handed to a public function has the wrong shape or type."""
