"""The local Hugging Face cache: where it is, and what of a model lies in it. Never touches the network.

    models--org--name/blobs/<digest>                   a file's content; <digest>.incomplete while it comes
    models--org--name/snapshots/<commit>/<file>        a link to its blob, or a copy where there are no links
    models--org--name/refs/<branch or tag>             the commit it stands for

Source: huggingface_hub, constants.py and file_download.py.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pg2ref.hub.names import MAIN_REVISION, ModelName, parse_name

UNFINISHED = ".incomplete"
_COMMIT_PATTERN = re.compile(r"[0-9a-f]{40}")
_MODEL_PREFIX = "models--"


class CachedModel(NamedTuple):
    """One state of a model in the cache."""

    name: ModelName
    folder: Path  # its snapshot


def hub_cache_folder() -> Path:
    """Where the Hugging Face libraries keep what they downloaded; the folder need not exist.

    HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub. A variable that
    is set but empty counts as unset.
    """
    if hub_cache := os.environ.get("HF_HUB_CACHE"):
        chosen = hub_cache
    elif hf_home := os.environ.get("HF_HOME"):
        chosen = os.path.join(hf_home, "hub")
    else:
        user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
        chosen = os.path.join(user_cache, "huggingface", "hub")
    return Path(os.path.expandvars(os.path.expanduser(chosen)))


def repository_folder(model_id: str) -> Path:
    """All that the cache has of a model; the folder need not exist."""
    return hub_cache_folder() / (_MODEL_PREFIX + model_id.replace("/", "--"))


def is_commit(text: str) -> bool:
    """Whether it is a whole commit, and so needs no reference."""
    return _COMMIT_PATTERN.fullmatch(text) is not None


def commit_of(repository: Path, revision: str) -> str | None:
    """The commit that a branch, tag or bare 40-digit revision stands for in the cache, if it is there."""
    try:
        with open(repository / "refs" / revision, encoding="ascii", errors="replace") as stream:
            stored = stream.read(100).strip()
    except OSError:
        stored = revision
    return stored if is_commit(stored) else None


def unfinished_bytes(repository: Path) -> int:
    """How much lies there of files that have not come whole, for a download to go on from."""
    try:
        return sum(path.stat().st_size for path in (repository / "blobs").iterdir() if path.suffix == UNFINISHED)
    except OSError:
        return 0


def cached_models() -> Iterator[CachedModel]:
    """All that the cache has of models: every reference, and commits that none names."""
    try:
        repositories = sorted(path for path in hub_cache_folder().iterdir() if path.name.startswith(_MODEL_PREFIX))
    except OSError:
        return
    for repository in repositories:
        model_id = repository.name.removeprefix(_MODEL_PREFIX).replace("--", "/", 1)
        references = repository / "refs"
        revisions = [
            path.relative_to(references).as_posix() for path in sorted(references.rglob("*")) if path.is_file()
        ]
        revisions.sort(key=lambda revision: revision != MAIN_REVISION)
        named = {commit_of(repository, revision) for revision in revisions}
        snapshots = repository / "snapshots"
        others = [path.name for path in sorted(snapshots.glob("*")) if is_commit(path.name) and path.name not in named]
        for revision in (*revisions, *others):
            name, commit = parse_name(f"{model_id}@{revision}"), commit_of(repository, revision)
            if name is not None and commit is not None:
                yield CachedModel(name, snapshots / commit)
