"""What `--help` of a tool prints: its docstring."""


def help_of(docstring: str | None) -> str:
    """The docstring with its examples a line each, where click would fill lines with them."""
    return (docstring or "").replace("\n\n    ", "\n\n\b\n    ")
