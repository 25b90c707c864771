"""From a model's name to its folder: folders, files, the Hugging Face cache, and names that play tricks."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pg2ref.checkpoint.locate import locate
from pg2ref.checkpoint.shards import INDEX_NAME
from pg2ref.errors import CheckpointError, ModelNotAvailableError
from pg2ref.hub.cache import hub_cache_folder

MODEL_ID = "google/paligemma2-3b-mix-224"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = COMMIT[::-1]
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty home, an empty working folder, no settings, and no network to be reached."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was touched"))


def write_model(folder: Path, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"a": np.zeros(1)}, folder / weights)
    return folder


def write_cached(cache: Path, commit: str = COMMIT, revision: str = "main") -> Path:
    """One model in the cache's layout: blobs, links to them, a reference that names the commit."""
    repository = cache / "models--google--paligemma2-3b-mix-224"
    blobs = write_model(repository / "blobs")
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    return snapshot


def default_cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".cache" / "huggingface" / "hub"


def unavailable(name: str | Path) -> str:
    with pytest.raises(ModelNotAvailableError) as caught:
        locate(name)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


def inconsistent(name: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        locate(name)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_existing_folder(tmp_path):
    folder = write_model(tmp_path / "home" / "pg2")
    assert locate(folder) == locate(str(folder)) == locate("~/pg2") == locate("../home/pg2/").resolve() == folder


def test_a_folder_comes_before_the_cache(tmp_path):
    write_cached(default_cache(tmp_path))
    write_model(Path(MODEL_ID))
    assert locate(MODEL_ID) == Path(MODEL_ID)


def test_a_weight_file_stands_for_its_folder(tmp_path):
    folder = write_model(tmp_path / "pg2")
    assert locate(folder / "model.safetensors") == folder
    (folder / "other.safetensors").touch()
    assert "the weights of this folder are model.safetensors" in inconsistent(folder / "other.safetensors")
    (folder / "config.json").unlink()
    assert "no config.json" in inconsistent(folder / "model.safetensors")


def test_another_kind_of_file_is_no_model(tmp_path):
    (tmp_path / "weights.gguf").touch()
    assert "another kind of file" in unavailable(tmp_path / "weights.gguf")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "it is empty"),
        (["b.bin", "a.txt"], "it holds a.txt, b.bin"),
        ([f"{i}.txt" for i in range(10)], "and 2 more"),
        (["adapter_config.json", "adapter_model.safetensors"], "it is an adapter"),
    ],
)
def test_a_folder_without_config_says_what_it_holds(tmp_path, names, expected):
    for name in names:
        (tmp_path / "work" / name).touch()
    message = inconsistent(tmp_path / "work")
    assert "no config.json" in message
    assert expected in message


@pytest.mark.parametrize(
    ("variables", "cache"),
    [
        ({}, "home/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/huggingface/hub"),
        ({"XDG_CACHE_HOME": "{}/xdg", "HF_HOME": "~/hf"}, "home/hf/hub"),
        ({"XDG_CACHE_HOME": "{}/xdg", "HF_HOME": "~/hf", "HF_HUB_CACHE": "$HOME/hubs"}, "home/hubs"),
        ({"XDG_CACHE_HOME": "", "HF_HOME": "", "HF_HUB_CACHE": ""}, "home/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_variables_say(tmp_path, monkeypatch, variables, cache):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert hub_cache_folder() == tmp_path / cache
    assert str(tmp_path / cache) in unavailable(MODEL_ID)
    snapshot = write_cached(tmp_path / cache)
    assert locate(MODEL_ID) == snapshot


def test_revisions(tmp_path):
    cache = default_cache(tmp_path)
    main = write_cached(cache)
    pull_request = write_cached(cache, OTHER_COMMIT, "refs/pr/1")
    assert locate(f"{MODEL_ID}@main") == locate(f"{MODEL_ID}@{COMMIT}") == main
    assert locate(f"{MODEL_ID}@refs/pr/1") == locate(f"{MODEL_ID}@{OTHER_COMMIT}") == pull_request
    for absent in ("v2", "f" * 40, "refs/pr", COMMIT[:7]):
        message = unavailable(f"{MODEL_ID}@{absent}")
        assert f"revision {absent} is not in the Hugging Face cache" in message
        assert f"pg2ref download {MODEL_ID}@{absent}" in message


@pytest.mark.parametrize("stored", ["", "../../../..", "main", "\xff" * 40, "0" * 5000])
def test_a_damaged_reference_is_no_way_out_of_the_cache(tmp_path, stored):
    snapshot = write_cached(default_cache(tmp_path))
    (snapshot.parent.parent / "refs" / "main").write_text(stored, encoding="latin-1")
    assert "revision main is not in the Hugging Face cache" in unavailable(MODEL_ID)


def test_what_is_not_cached_comes_with_the_command_and_the_licence(tmp_path):
    message = unavailable(MODEL_ID)
    assert str(default_cache(tmp_path) / "models--google--paligemma2-3b-mix-224") in message
    assert f"`pg2ref download {MODEL_ID}`" in message
    assert "`pip install 'pg2ref[hub]'`" in message
    assert f"licence is accepted at https://huggingface.co/{MODEL_ID}" in message


def test_a_partial_download_is_told_shard_by_shard(tmp_path):
    snapshot = write_cached(default_cache(tmp_path))
    (snapshot / "model.safetensors").unlink()
    (snapshot / INDEX_NAME).write_text(json.dumps({"weight_map": dict(zip("abc", SHARDS, strict=True))}))
    (snapshot / SHARDS[1]).touch()
    (snapshot / SHARDS[2]).symlink_to("../../blobs/gone")
    message = unavailable(MODEL_ID)
    assert f"2 of 3 shards are missing: {SHARDS[0]}, {SHARDS[2]}" in message
    assert f"pg2ref download {MODEL_ID}" in message
    (snapshot / "config.json").unlink()
    assert "no config.json" in unavailable(MODEL_ID)


NO_NAMES = ["", " ", "paligemma2", "a/b/c", "google/..", "../google", "google/../x", "../../no", "~nobody/x"]
NO_NAMES += ["a\0b", "~\0", "a/b\0", "a/b@", "a/b@..", "a/b@../../x", "a/b@/etc", "a/b@x@y", "a/b@x//y", "a/b\n"]
NO_NAMES += [
    "a--b/c",
    "a/b..c",
    "-a/b",
    ".a/b",
    "a/.b",
    "a b/c",
    "a\\b/c",
    "\u00e4/b",
    "\ud800/b",
    "~\ud800",
    "a/" + "b" * 5000,
]
NO_NAMES += ["/no/such/folder", "./google/paligemma2", "https://huggingface.co/google/x", "\x1b[2J/x"]


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_is_no_name_does_not_escape_and_shows_a_name(tmp_path, name):
    write_model(default_cache(tmp_path).parent / "x")
    message = unavailable(name)
    assert "no such folder" in message
    assert f"pg2ref download {MODEL_ID}" in message
    assert len(message) < 500


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.one_of(st.text(max_size=20), st.text("./@~-a\0", max_size=12)))
def test_any_text_ends_in_a_folder_or_an_error_of_the_family(name):
    with pytest.raises((ModelNotAvailableError, CheckpointError)):
        locate(name)
