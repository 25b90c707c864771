"""All bugs by name, in the order in which a forward pass meets them."""

from collections.abc import Mapping

from pg2ref.errors import UsageError
from pg2ref.parity.bugs import attention, decoder, inputs, vision
from pg2ref.parity.bugs.run import Bug

BUGS: Mapping[str, Bug] = {bug.name: bug for bug in (*inputs.BUGS, *vision.BUGS, *attention.BUGS, *decoder.BUGS)}


def find_bug(name: str) -> Bug:
    """The bug of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in BUGS:
        raise UsageError(f"bug {name!r} is not one of {', '.join(BUGS)}; `pg2ref break --list` says what each does")
    return BUGS[name]
