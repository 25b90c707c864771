"""`pg2ref download` against a small Hub on the loopback: what arrives, what is refused, what is gone on with."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import PG2REF, Ran, Run, make_run
from hub_server import COMMIT, MODEL_ID, TOKEN, Hub, digest_of, serve

from pg2ref.checkpoint.locate import locate
from pg2ref.errors import ModelNotAvailableError
from pg2ref.hub.cache import cached_models
from pg2ref.hub.names import ModelName

pytest.importorskip("huggingface_hub")
from huggingface_hub import close_session, constants

LARGE = "model-00002-of-00002.safetensors"
OTHER_COMMIT = COMMIT[::-1]


def content(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def hub() -> Hub:
    shards = ["model-00001-of-00002.safetensors", LARGE]
    index = {"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}}
    return Hub(
        {
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps(index).encode(),
            shards[0]: content(70_001, 1),
            LARGE: content(31_000_003, 2),
            "tokenizer.model": content(300, 3),
            "README.md": b"# not wanted",
            "pytorch_model.bin": b"nor this",
            "onnx/model.safetensors": b"nor that",
            "../escape.json": b"{}",
        }
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def endpoint(hub: Hub) -> Iterator[str]:
    with serve(hub) as address:
        yield address


class Download:
    """Runs the command, in this process or in one of its own."""

    def __init__(self, run: Run, cache: Path, endpoint: str) -> None:
        self.run = run
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        home = {"HF_HUB_CACHE": str(cache), "HF_HOME": str(cache.parent / "home"), "HF_ENDPOINT": endpoint}
        self.environment = kept | home | {"NO_PROXY": "*", "HF_HUB_DOWNLOAD_TIMEOUT": "30"}
        self.command = [*PG2REF, "download", MODEL_ID]

    def __call__(self, *arguments: str) -> Ran:
        return self.run("download", *(arguments or (MODEL_ID,)))

    def process(self, **variables: str) -> "subprocess.CompletedProcess[str]":
        """In a process of its own, which reads its settings from the environment."""
        environment = self.environment | variables
        return subprocess.run(self.command, capture_output=True, text=True, env=environment, timeout=120)

    def fails(self, *arguments: str) -> str:
        """The message of a refusal, one line behind the line that says what there is."""
        ran = self(*arguments)
        assert (ran.code, ran.out) == (3, "")
        message = ran.err.splitlines()[-1]
        assert message.startswith(f"pg2ref: {(arguments or (MODEL_ID,))[0]}: ")
        assert "Traceback" not in ran.err
        return message


@pytest.fixture
def download(
    cache: Path, endpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Download]:
    """huggingface_hub reads most variables when it is imported: what it keeps of them is set here instead."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache.parent / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    yield Download(make_run(capsys, monkeypatch), cache, endpoint)
    close_session()


def test_the_variables_say_where(download: Download, hub: Hub) -> None:
    """HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN, in a process of its own."""
    hub.gated = hub.accepted = True
    ran = download.process(HF_TOKEN=TOKEN)
    assert (ran.returncode, ran.stdout) == (0, f"{locate(MODEL_ID)}\n")
    assert {headers["authorization"] for _, headers in hub.requests} == {f"Bearer {TOKEN}"}
    (Path(download.environment["HF_HOME"])).mkdir(exist_ok=True)
    (Path(download.environment["HF_HOME"]) / "token").write_text("hf_wrong")  # as `hf auth login` leaves one
    assert "the token is not valid" in download.process().stderr


def test_what_is_wanted_arrives_and_is_found_by_name(download: Download, hub: Hub, cache: Path) -> None:
    ran = download()
    snapshot = cache / f"models--google--{MODEL_ID.split('/')[1]}" / "snapshots" / COMMIT
    assert (ran.code, ran.out) == (0, f"{snapshot}\n")
    assert ran.err == f"{MODEL_ID}: 5 files, 0.03 GB; 0.03 GB to fetch, into {snapshot}\n"
    wanted = {path for path in hub.files if "/" not in path} - {"README.md", "pytorch_model.bin"}
    assert {path.name for path in snapshot.iterdir()} == wanted
    for path in snapshot.iterdir():
        assert path.read_bytes() == hub.files[path.name]
        assert path.is_symlink()
        assert path.resolve().name == digest_of(path.name, hub.files[path.name])
    assert not list(cache.rglob("*.incomplete"))
    assert locate(MODEL_ID) == locate(f"{MODEL_ID}@{COMMIT}") == snapshot
    assert list(cached_models()) == [(ModelName(MODEL_ID, "main"), snapshot)]
    assert not list(cache.parent.rglob("escape.json"))


def test_huggingface_hub_finds_the_same(download: Download, hub: Hub, cache: Path) -> None:
    """Offline, as any of its users would."""
    assert download().code == 0
    code = (
        "from huggingface_hub import hf_hub_download as f, scan_cache_dir as s\n"
        f"print(f({MODEL_ID!r}, {LARGE!r}))\nprint([str(w) for w in s().warnings])"
    )
    environment = download.environment | {"HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert ran.stdout == f"{locate(MODEL_ID) / LARGE}\n[]\n", ran.stderr


def test_nothing_is_fetched_twice_and_all_is_checked_again(download: Download, hub: Hub) -> None:
    assert download().code == 0
    hub.requests.clear()
    facts = json.loads(download(MODEL_ID, "--json").out)
    assert [path for path, _ in hub.requests] == [f"/api/models/{MODEL_ID}/revision/main"]
    assert facts.pop("seconds") >= 0
    names = [name for name in hub.files if name in {file["path"] for file in facts["files"]}]
    expected = [{"path": n, "bytes": len(hub.files[n]), "digest": digest_of(n, hub.files[n])} for n in names]
    total = sum(file["bytes"] for file in expected)
    assert facts == {
        "schema": "pg2ref/download/1",
        "model": MODEL_ID,
        "revision": "main",
        "commit": COMMIT,
        "folder": str(locate(MODEL_ID)),
        "files": expected,
        "bytes": total,
        "fetched_bytes": 0,
        "missing_bytes": 0,
    }
    blob = (locate(MODEL_ID) / LARGE).resolve()
    blob.chmod(0o644)
    blob.write_bytes(b"\0" * len(hub.files[LARGE]))  # rot on the disk
    assert f"{LARGE} is damaged" in download.fails()
    assert download().code == 0
    assert blob.read_bytes() == hub.files[LARGE]


def test_a_dry_run_fetches_nothing(download: Download, hub: Hub, cache: Path) -> None:
    ran = download(MODEL_ID, "--dry-run", "--json")
    facts = json.loads(ran.out)
    assert (facts["fetched_bytes"], facts["missing_bytes"]) == (0, facts["bytes"])
    assert "0.03 GB to fetch" in ran.err
    assert len(hub.requests) == 1
    assert not cache.exists()


def test_revisions(download: Download, hub: Hub, cache: Path) -> None:
    assert download(f"{MODEL_ID}@v1").code == 0
    first = locate(f"{MODEL_ID}@v1")
    with pytest.raises(ModelNotAvailableError):
        locate(MODEL_ID)
    hub.commit, hub.files["config.json"] = OTHER_COMMIT, b'{"new": 1}'
    hub.requests.clear()
    assert download(f"{MODEL_ID}@v1").code == 0  # the tag has moved: one small file is new
    assert [path.rsplit("/", 1)[1] for path, _ in hub.requests] == ["v1", "config.json"]
    assert locate(f"{MODEL_ID}@v1") == first.parent / OTHER_COMMIT
    assert locate(f"{MODEL_ID}@{COMMIT}") == first
    assert {str(model.name) for model in cached_models()} == {f"{MODEL_ID}@v1", f"{MODEL_ID}@{COMMIT}"}
    assert download(f"{MODEL_ID}@{OTHER_COMMIT}").code == 0
    message = download.fails(f"{MODEL_ID}@v2")
    assert message.endswith(f"there is no revision v2; https://huggingface.co/{MODEL_ID}/branches lists them")


# Going on.


def test_a_cut_connection_is_gone_on_with(download: Download, hub: Hub) -> None:
    """Twice within one run: each time the rest alone is asked for."""
    hub.cut_after[LARGE] = [11_000_000, 12_000_000]
    assert download().code == 0
    assert (locate(MODEL_ID) / LARGE).read_bytes() == hub.files[LARGE]
    ranges = [headers.get("range") for headers in hub.headers_of(LARGE)]
    assert ranges[0] is None
    assert [r.startswith("bytes=") and int(r[6:-1]) > 9_000_000 for r in ranges[1:]] == [True, True]


@pytest.mark.skipif(os.name != "posix", reason="signals of another kind")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_another_process_goes_on_where_one_was_ended(
    sent: signal.Signals, download: Download, hub: Hub, cache: Path
) -> None:
    hub.stall_after[LARGE] = 21_500_000
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(download.command, env=download.environment, **pipes)
    assert hub.stalled.wait(60)
    while not [path for path in cache.rglob("*.incomplete") if path.stat().st_size >= 10_485_760]:
        assert process.poll() is None
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    if sent == signal.SIGINT:
        assert (process.returncode, said.decode().splitlines()[-1]) == (130, "pg2ref: interrupted")
    with pytest.raises(
        ModelNotAvailableError, match=rf"GB of unfinished files are kept\): .*1 of 2 .*: {LARGE}; .*run"
    ):
        locate(MODEL_ID)
    (unfinished,) = cache.rglob("*.incomplete")
    kept = unfinished.stat().st_size
    assert hub.files[LARGE].startswith(unfinished.read_bytes())
    hub.stall_after.clear()
    hub.requests.clear()
    facts = json.loads(download(MODEL_ID, "--json").out)
    assert facts["fetched_bytes"] == len(hub.files[LARGE]) + 300 - kept
    assert [headers["range"] for headers in hub.headers_of(LARGE)] == [f"bytes={kept}-"]
    assert not hub.headers_of("config.json")
    assert (locate(MODEL_ID) / LARGE).read_bytes() == hub.files[LARGE]


def test_a_server_without_ranges_begins_anew(download: Download, hub: Hub, cache: Path) -> None:
    hub.ignores_ranges = True
    hub.cut_after[LARGE] = [15_000_000]
    assert download().code == 0
    assert (locate(MODEL_ID) / LARGE).read_bytes() == hub.files[LARGE]


def test_content_that_is_not_what_was_stated(download: Download, hub: Hub, cache: Path) -> None:
    """Of the right length, large and small; it never gets a place, and the next run fetches it anew."""
    for name in (LARGE, "config.json"):  # of a second state, which has another one
        hub.served = {name: bytes(len(hub.files[name]))}
        message = download.fails()
        assert f"{name} is damaged: its digest is {digest_of(name, hub.served[name])}, expected" in message
        assert message.endswith(f"it was removed: run `pg2ref download {MODEL_ID}` again")
        assert not list(cache.rglob(f"{hub.commit}/{name}"))
        assert digest_of(name, hub.files[name]) not in {path.name for path in cache.rglob("*")}
        with pytest.raises(ModelNotAvailableError):
            locate(MODEL_ID)
        hub.files["config.json"] = b"{ }"
        hub.commit = OTHER_COMMIT
    hub.served = {}
    assert download().code == 0
    assert locate(MODEL_ID).is_dir()


# Refusals: each says the next step.


def test_gated_without_a_token(download: Download, hub: Hub) -> None:
    hub.gated = True
    message = download.fails()
    assert f"gated: accept its licence at https://huggingface.co/{MODEL_ID}, then run `hf auth login`" in message
    assert message.endswith("or set HF_TOKEN")


def test_gated_and_not_accepted(download: Download, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    message = download.fails()
    assert "the account of this token has not accepted the licence" in message
    assert f"accept it at https://huggingface.co/{MODEL_ID} " in message
    hub.accepted = True
    assert download().code == 0
    assert {headers["authorization"] for _, headers in hub.requests} == {f"Bearer {TOKEN}"}


def test_a_token_that_is_not_valid(download: Download, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = download.fails()
    assert "the token is not valid: make one at https://huggingface.co/settings/tokens, then run `hf auth" in message
    assert "hf_wrong" not in message


def test_no_such_model_and_private_ones(download: Download, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such model at http://127.0.0.1:" in download.fails("google/paligemma9")
    hub.private = True
    assert "it is private: run `hf auth login`" in download.fails()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "this account may not see it" in download.fails("google/paligemma9")
    assert download().code == 0


@pytest.mark.parametrize("status", [404, 500])
def test_other_answers(status: int, download: Download, hub: Hub) -> None:
    hub.status = status
    assert f"answered {status}; what has come is kept" in download.fails()


def test_no_server(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        message = download.fails()
    assert "the connection to http://127.0.0.1:" in message
    assert message.endswith("run the same command again and it goes on from there")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline(variable: str, download: Download, hub: Hub) -> None:
    ran = download.process(**{variable: "1"})
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "HF_HUB_OFFLINE is set, so that nothing is downloaded: unset it" in ran.stderr
    assert hub.requests == []


def test_a_model_without_weights(download: Download, hub: Hub) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b""}
    assert "holds no safetensors or npz weights" in download.fails()


def test_names_that_are_none(download: Download, hub: Hub) -> None:
    ran = download("paligemma2")
    assert ran.code == 2
    assert f"expected a name like {MODEL_ID}" in ran.err
    assert hub.requests == []


def test_a_token_does_not_follow_to_another_host(download: Download, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files lie elsewhere, as on the real Hub."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve(hub, "127.0.0.2") as elsewhere:
        hub.moved_to = elsewhere
        assert download().code == 0
    moved = [headers for path, headers in hub.requests if path.startswith("/moved/")]
    assert len(moved) == 5
    assert not [headers for headers in moved if "authorization" in headers]


def test_without_the_extra(download: Download, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError")
    ran = download.process(PYTHONPATH=str(tmp_path))
    assert ran.returncode == 2
    assert ran.stderr == "pg2ref: downloads need huggingface_hub: pip install 'pg2ref[hub]'\n"


def test_a_disk_without_room(download: Download, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache.parent)._replace(free=30_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    ran = download()
    assert (ran.code, ran.out) == (1, "")
    assert "0.03 GB are needed, 0.03 GB are free; make room, or name another place with HF_HUB_CACHE" in ran.err
    assert not list(cache.rglob("config.json"))


def test_a_cache_that_is_no_folder(download: Download, cache: Path) -> None:
    cache.write_text("")
    ran = download()
    assert (ran.code, ran.out) == (1, "")
    assert f"{cache}: cannot be written (File exists)" in ran.err


def test_a_disk_that_fills_up(download: Download, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come is kept, and gone on with."""
    written = []

    def write(self: Any, content: bytes) -> int:
        written.append(len(content))
        if sum(written) > 15_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self.stream.write(content))

    with monkeypatch.context() as patch:
        patch.setattr("pg2ref.hub.download._Counted.write", write)
        ran = download()
    assert (ran.code, ran.out) == (1, "")
    assert "cannot be written (No space left on device); what has come is kept: make room" in ran.err
    hub.requests.clear()
    assert download().code == 0
    assert hub.headers_of(LARGE)[0]["range"] == "bytes=10485760-"
