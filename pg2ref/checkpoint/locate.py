"""From what the user calls a model to the folder that holds it; never touches the network.

In this order: an existing folder; an existing safetensors file, which stands for its folder; an .npz of big_vision,
which is a checkpoint by itself (big_vision.py); `org/name` or
`org/name@revision` in the local Hugging Face cache. A download of 6 to 55 GB is the user's decision: where nothing
is found, the message carries the command to run.
"""

import os
import re
from pathlib import Path

from pg2ref.checkpoint.shards import folder_names, name_some, weight_files
from pg2ref.errors import CheckpointError, ModelNotAvailableError

EXAMPLE_ID = "google/paligemma2-3b-mix-224"
CONFIG_NAME = "config.json"
BIG_VISION_SUFFIX = ".npz"
MAIN_REVISION = "main"
MAX_ID_LENGTH = 96  # as on the Hub
_ID_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION_PATTERN = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)  # refs/pr/1 is one, ../x is not
_COMMIT_PATTERN = re.compile(r"[0-9a-f]{40}")


def _check_config(folder: Path) -> Path:
    if os.path.isfile(folder / CONFIG_NAME):
        return folder
    names = folder_names(folder)
    if "adapter_config.json" in names:
        advice = "it is an adapter: give its base model as the model and this folder as the adapter"
    elif names:
        advice = f"it holds {name_some(names, limit=8)}; give the folder of a checkpoint"
    else:
        advice = "it is empty; give the folder of a checkpoint"
    raise CheckpointError(f"{folder}: no {CONFIG_NAME} in the folder; {advice}")


def _folder_of_file(path: Path) -> Path:
    if path.suffix == BIG_VISION_SUFFIX:
        return path
    if path.suffix != ".safetensors":
        raise ModelNotAvailableError(
            f"{path}: expected a folder with {CONFIG_NAME} and safetensors weights, or an .npz of big_vision, "
            "got another kind of file"
        )
    folder = _check_config(path.parent)
    names = [file.name for file in weight_files(folder)]
    if path.name not in names:
        raise CheckpointError(
            f"{path}: the weights of this folder are {name_some(names)}; move {path.name} into a folder of its own"
        )
    return folder


def hub_cache_folder() -> Path:
    """Where the Hugging Face libraries keep what they downloaded; the folder need not exist.

    Source: huggingface_hub, constants.py: HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub,
    else ~/.cache/huggingface/hub. A variable that is set but empty counts as unset.
    """
    if hub_cache := os.environ.get("HF_HUB_CACHE"):
        chosen = hub_cache
    elif hf_home := os.environ.get("HF_HOME"):
        chosen = os.path.join(hf_home, "hub")
    else:
        user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
        chosen = os.path.join(user_cache, "huggingface", "hub")
    return Path(os.path.expandvars(os.path.expanduser(chosen)))


def _commit(repository: Path, revision: str) -> str | None:
    """The commit that a branch, tag or bare 40-digit revision stands for in the cache, if it is there."""
    try:
        with open(repository / "refs" / revision, encoding="ascii", errors="replace") as stream:
            stored = stream.read(100).strip()
    except OSError:
        stored = revision
    return stored if _COMMIT_PATTERN.fullmatch(stored) else None


def _download_advice(model_id: str, revision: str) -> str:
    option = "" if revision == MAIN_REVISION else f" --revision {revision}"
    return (
        f"run `hf download {model_id}{option}` (`pip install 'pg2ref[hub]'` brings hf), "
        f"once Gemma's licence is accepted at https://huggingface.co/{model_id}"
    )


def _snapshot(model_id: str, revision: str) -> Path:
    repository = hub_cache_folder() / f"models--{model_id.replace('/', '--')}"
    advice = _download_advice(model_id, revision)
    if not os.path.isdir(repository):
        raise ModelNotAvailableError(
            f"{model_id}: neither a folder nor in the Hugging Face cache (looked for {repository}); {advice}"
        )
    commit = _commit(repository, revision)
    folder = repository / "snapshots" / commit if commit else None
    if folder is None or not os.path.isdir(folder):
        raise ModelNotAvailableError(
            f"{model_id}: revision {revision} is not in the Hugging Face cache (looked in {repository}); {advice}"
        )
    try:
        _check_config(folder)
        weight_files(folder)
    except CheckpointError as error:
        raise ModelNotAvailableError(f"{model_id}: not wholly downloaded: {error}; {advice}") from error
    return folder


def _split_name(text: str) -> tuple[str, str] | None:
    """`org/name[@revision]` in its two parts; None where it is no such name, path tricks included."""
    model_id, at, revision = text.partition("@")
    revision = revision if at else MAIN_REVISION
    if len(text) > 2 * MAX_ID_LENGTH or len(model_id) > MAX_ID_LENGTH or ".." in text or "--" in model_id:
        return None
    if not _ID_PATTERN.fullmatch(model_id) or not _REVISION_PATTERN.fullmatch(revision):
        return None
    return model_id, revision


def locate(name: str | Path) -> Path:
    """The folder of a model, or its .npz; by folder, by file, or by name in the local Hugging Face cache.

    Args:
        name: a folder with config.json, a safetensors file in one, an .npz of big_vision, or `org/name[@revision]`;
            `~` is expanded.

    Raises:
        ModelNotAvailableError: nothing is there, or a download in the cache is not complete.
        CheckpointError: the folder is there but has no config.json.

    Source: for the cache's layout, huggingface_hub, file_download.py (`models--org--name/refs`, `snapshots`).
    """
    text = os.fspath(name)
    try:
        path = Path(os.path.expanduser(text))
    except ValueError:  # a NUL byte or a lone surrogate after ~
        path = Path(text)
    if text and os.path.isdir(path):
        return _check_config(path)
    if text and os.path.isfile(path):
        return _folder_of_file(path)
    parts = _split_name(text)
    if parts is None:
        shown = repr(text if len(text) <= MAX_ID_LENGTH else text[:MAX_ID_LENGTH] + "...")
        raise ModelNotAvailableError(
            f"{shown}: no such folder, and not a name like {EXAMPLE_ID}; {_download_advice(EXAMPLE_ID, MAIN_REVISION)}"
        )
    return _snapshot(*parts)
