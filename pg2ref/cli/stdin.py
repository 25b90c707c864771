"""What `-` stands for on the command line."""

import sys
from typing import Any

from pg2ref.errors import PromptError, UsageError


def read_stdin(images: tuple[str, ...], prompt: str) -> tuple[list[Any], str]:
    """Image sources and prompt, with the one `-` among them replaced by what stdin holds."""
    if [*images, prompt].count("-") > 1:
        raise UsageError("`-` can stand for one image or for the prompt, once: stdin holds one thing")
    if "-" in (*images, prompt) and sys.stdin is None:
        raise UsageError("`-` reads stdin, which is closed")
    if prompt == "-":
        return list(images), decode_prompt(sys.stdin.buffer.read())
    return [sys.stdin.buffer if image == "-" else image for image in images], prompt


def decode_prompt(stored: bytes) -> str:
    """The prompt as it was piped in, without the newline that ends a line."""
    try:
        return stored.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"the prompt on stdin is not UTF-8: byte {error.start} is 0x{stored[error.start]:02X}; convert it"
        ) from None
