"""PaliGemma 2 from scratch in NumPy and Numba: to read, to check a port against, to run on a CPU.

    import pg2ref

    model = pg2ref.load("google/paligemma2-3b-mix-224")      # a folder, or a name in the local Hugging Face cache
    result = model.generate("photo.jpg", "caption en")
    print(result.text)

Names are imported when they are first used, so that `pg2ref --help` and the errors cost nothing.
"""

from typing import TYPE_CHECKING, Any

from pg2ref import errors

if TYPE_CHECKING:
    from pg2ref.api import Model, load
    from pg2ref.outputs.result import Result

__all__ = ["Model", "Result", "errors", "load"]

_HOMES = {"Model": "pg2ref.api", "load": "pg2ref.api", "Result": "pg2ref.outputs.result"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pg2ref' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
