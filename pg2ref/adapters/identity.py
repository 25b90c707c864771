"""Which adapter it was: by name for people, by digests for programs, as the folder may lie elsewhere tomorrow."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from pg2ref.adapters.adapter import WEIGHTS_NAME
from pg2ref.adapters.lora_config import CONFIG_NAME
from pg2ref.errors import shown_name
from pg2ref.inputs.image import file_digest

Identity: TypeAlias = dict[str, str]


def identify(folder: str | Path) -> Identity:
    """`name`, that of the folder, and the SHA-256 of both its files, `sha256` and `config_sha256`."""
    folder = Path(folder)
    return {
        "name": folder.resolve().name,
        "sha256": file_digest(folder / WEIGHTS_NAME),
        "config_sha256": file_digest(folder / CONFIG_NAME),
    }


def are_same(some: Sequence[Identity], others: Sequence[Identity]) -> bool:
    """Whether they are the same adapters in the same order, whatever their folders are called."""
    return [_digests(one) for one in some] == [_digests(one) for one in others]


def _digests(one: Identity) -> tuple[str | None, str | None]:
    return one.get("sha256"), one.get("config_sha256")


def listed(adapters: Sequence[Identity]) -> str:
    """For a message: names with the beginnings of their digests."""
    return ", ".join(shown_name(f"{one.get('name')} ({str(one.get('sha256'))[:8]})") for one in adapters) or "none"
