"""From what the user calls a model to the folder that holds it; never touches the network.

In this order: `pg2ref-shapes`, the built-in model; an existing folder; an existing safetensors file, which stands for
its folder; `org/name` or `org/name@revision` in the local Hugging Face cache. A download of 6 to 55 GB is the user's
decision: where nothing is found, the message carries the command to run.
"""

import os
from pathlib import Path

from pg2ref.checkpoint.shards import folder_names, name_some, weight_files
from pg2ref.demo import builtin
from pg2ref.errors import CheckpointError, ModelNotAvailableError
from pg2ref.hub.cache import commit_of, repository_folder, unfinished_bytes
from pg2ref.hub.names import EXAMPLE_ID, MAIN_REVISION, MAX_ID_LENGTH, ModelName, download_advice, parse_name

CONFIG_NAME = "config.json"


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
    if path.suffix != ".safetensors":
        raise ModelNotAvailableError(
            f"{path}: expected a folder with {CONFIG_NAME} and safetensors weights, got another kind of file"
        )
    folder = _check_config(path.parent)
    names = [file.name for file in weight_files(folder)]
    if path.name not in names:
        raise CheckpointError(
            f"{path}: the weights of this folder are {name_some(names)}; move {path.name} into a folder of its own"
        )
    return folder


def _snapshot(name: ModelName) -> Path:
    repository, advice = repository_folder(name.model_id), download_advice(name)
    if not os.path.isdir(repository):
        raise ModelNotAvailableError(
            f"{name.model_id}: neither a folder nor in the Hugging Face cache (looked for {repository}); {advice}"
        )
    commit = commit_of(repository, name.revision)
    folder = repository / "snapshots" / commit if commit else None
    begun = unfinished_bytes(repository)
    kept = f" ({begun / 1e9:.2f} GB of unfinished files are kept)" if begun else ""
    if folder is None or not os.path.isdir(folder):
        raise ModelNotAvailableError(
            f"{name.model_id}: revision {name.revision} is not in the Hugging Face cache (looked in {repository})"
            f"{kept}; {advice}"
        )
    try:
        _check_config(folder)
        weight_files(folder)
    except CheckpointError as error:
        raise ModelNotAvailableError(f"{name.model_id}: not wholly downloaded{kept}: {error}; {advice}") from error
    return folder


def locate(name: str | Path) -> Path:
    """The folder of a model, by folder, by safetensors file, or by name in the local Hugging Face cache.

    Args:
        name: `pg2ref-shapes`, a folder with config.json, a safetensors file in one, or `org/name[@revision]`; `~` is
            expanded.

    Raises:
        ModelNotAvailableError: nothing is there, or a download in the cache is not complete.
        CheckpointError: the folder is there but has no config.json.

    Source: for the cache's layout, huggingface_hub, file_download.py (`models--org--name/refs`, `snapshots`).
    """
    text = os.fspath(name)
    if text == builtin.NAME:
        return builtin.FOLDER
    try:
        path = Path(os.path.expanduser(text))
    except ValueError:  # a NUL byte or a lone surrogate after ~
        path = Path(text)
    if text and os.path.isdir(path):
        return _check_config(path)
    if text and os.path.isfile(path):
        return _folder_of_file(path)
    model_name = parse_name(text)
    if model_name is None:
        shown = repr(text if len(text) <= MAX_ID_LENGTH else text[:MAX_ID_LENGTH] + "...")
        advice = download_advice(ModelName(EXAMPLE_ID, MAIN_REVISION))
        raise ModelNotAvailableError(f"{shown}: no such folder, and not a name like {EXAMPLE_ID}; {advice}")
    return _snapshot(model_name)
