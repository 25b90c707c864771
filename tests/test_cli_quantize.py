"""`pg2ref quantize`: what it prints, what it leaves, and that an interruption leaves nothing."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import random_checkpoint
from cli_runner import PG2REF, Run, write_picture

from pg2ref.checkpoint.loader import load_checkpoint

SCENE = Path(__file__).parent / "data" / "scene.png"
LEAVES = "embed_tokens q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()


def test_a_line_says_what_was_written(run: Run, small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run("quantize", "-m", small_folder, "-o", out, "--to", "int4")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{out}: int4, 0.00 GB of 0.00 GB, ")
    assert ran.out.count("\n") == 1
    assert load_checkpoint(out).weight_type == "int4"
    facts = json.loads(run("inspect", out, "--json").out)
    assert (facts["weights"], facts["tensors"]) == ("int4", 101)
    assert facts["parameters"] == json.loads(run("inspect", small_folder, "--json").out)["parameters"]
    assert run("inspect", out, "--verify").code == 0


def test_json(run: Run, small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run("quantize", "-m", small_folder, "-o", out, "--to", "int8", "--vision", "int8", "--json")
    assert (ran.code, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert facts.pop("seconds") >= 0
    assert facts == {
        "schema": "pg2ref/quantize/1",
        "source": str(small_folder),
        "folder": str(out),
        "to": "int8",
        "vision": "int8",
        "bytes": (out / "model.safetensors").stat().st_size,
        "source_bytes": (small_folder / "model.safetensors").stat().st_size,
    }


def test_what_was_written_answers(run: Run, small_folder: Path, tmp_path: Path) -> None:
    run("quantize", "-m", small_folder, "-o", tmp_path / "out", "--to", "int8")
    ran = run("generate", SCENE, "-m", tmp_path / "out", "-n", 4, "--json")
    assert ran.code == 0
    model = json.loads(ran.out)["model"]
    assert (model["dtype"], model["weights"], model["backend"]) == ("int8", "int8", "numba")


# The report.


def test_the_report_as_json(run: Run, small_folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", write_picture(tmp_path / "other.png")
    images = ["--report", SCENE, "--report", other]
    arguments = ["quantize", "-m", small_folder, "-o", out, *images, "-n", 5, "--json"]
    found = json.loads(run(*arguments, "--to", "int4").out)["report"]
    assert {weight["kind"] for weight in found["weights"]} == {f"text/{leaf}" for leaf in LEAVES}
    assert {weight["matrices"] for weight in found["weights"]} == {1, 4}
    assert all(weight["bits"] == 4 and 0.07 < weight["relative_rms"] < 0.09 for weight in found["weights"])
    stages = [stage["stage"] for stage in found["stages"]]
    vision = [f"vision/layer_{i:02d}/out" for i in range(3)]
    text = [f"text/layer_{i:02d}/out" for i in range(4)]
    assert stages == [*vision, "vision/post_layernorm", "projector/out", *text, "text/final_norm"]
    errors = {stage["stage"]: stage["nrmse"] for stage in found["stages"]}
    assert errors["projector/out"] < 0.02 < errors["text/layer_00/out"] < 0.5  # vision is bf16
    assert [score["image"] for score in found["scores"]] == [str(SCENE), str(other)]
    for score in found["scores"]:
        assert 1 <= score["tokens"] <= 5
        assert 0 < score["kl_mean"] <= score["kl_max"] < 1
        assert 0 <= score["top1_agreement"] <= 1
    again = json.loads(run(*arguments).out)  # OUT is there: only compared
    assert again == {"schema": "pg2ref/quantize/1", "source": str(small_folder), "folder": str(out), "report": found}


def test_the_report_as_tables(run: Run, small_folder: Path, tmp_path: Path) -> None:
    ran = run("quantize", "-m", small_folder, "-o", tmp_path / "out", "--to", "int8", "--report", SCENE, "-n", 3)
    assert (ran.code, ran.err) == (0, "")
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["text/embed_tokens", "8", "1"] in [line[:3] for line in lines]
    assert "text/final_norm" in [line[0] for line in lines if line]
    (row,) = [line for line in lines if line and line[0] == str(SCENE)]
    assert row[1] == "3"
    assert row[-1].endswith("%")


def test_more_bits_cost_less(run: Run, small_folder: Path, tmp_path: Path) -> None:
    found = {}
    for to in ("int8", "int4"):
        arguments = ["-m", small_folder, "-o", tmp_path / to, "--to", to, "--report", SCENE, "--json"]
        found[to] = json.loads(run("quantize", *arguments).out)["report"]
    assert found["int8"]["scores"][0]["kl_mean"] < found["int4"]["scores"][0]["kl_mean"] / 10
    assert found["int8"]["stages"][-1]["nrmse"] < found["int4"]["stages"][-1]["nrmse"] / 3


def test_a_report_needs_a_source_and_what_was_made_of_it(run: Run, small_folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    run("quantize", "-m", small_folder, "-o", out, "--to", "int8")
    config = random_checkpoint.released_config("small")
    config["text_config"] = {**config["text_config"], "sliding_window": 8}
    random_checkpoint.write_checkpoint(other, config)
    for source, compared, message in [
        (small_folder, small_folder, f"{small_folder}: expected a checkpoint that `pg2ref quantize` has written"),
        (out, out, f"{out}: quantised itself, expected the checkpoint that {out} was made from"),
        (other, out, f"{out} is no quantised {other}: their config.json differ; name the checkpoint"),
    ]:
        ran = run("quantize", "-m", source, "-o", compared, "--report", SCENE)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err


# A terminal, and whoever sits at it.


def large_checkpoint(folder: Path) -> Path:
    """Some 200 MB, so that there is time to interrupt."""
    config = random_checkpoint.released_config("small")
    config["text_config"] = {**config["text_config"], "hidden_size": 768, "intermediate_size": 6144}
    config["projection_dim"] = 768
    config["text_config"]["num_hidden_layers"] = 8
    random_checkpoint.write_checkpoint(folder, config)
    return folder


@pytest.mark.skipif(os.name != "posix", reason="signals and terminals of another kind")
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    source, out = large_checkpoint(tmp_path / "source"), tmp_path / "out"
    command = [*PG2REF, "quantize", "-m", str(source), "-o", str(out), "--to", "int4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not list(tmp_path.glob(".out.*.part/out/*.part")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=30)
    assert (process.returncode, printed, said.strip()) == (130, "", "pg2ref: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_progress_line_and_little_memory(tmp_path: Path) -> None:
    """On a terminal; of a source of 250 MB only what is in work is in memory."""
    source, out = large_checkpoint(tmp_path / "source"), tmp_path / "out"
    program = (
        "from pg2ref.cli.main import main\ntry:\n    main()\nfinally:\n"
        "    print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    leader, follower = pty.openpty()
    arguments = ["quantize", "-m", str(source), "-o", str(out), "--to", "int8"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stderr=follower, stdout=subprocess.PIPE, text=True
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"quantising" in shown
    assert b"GB" in shown
    assert shown.endswith(b"\r\x1b[K"), "the line is gone in the end"
    peak_bytes = int(printed.split()[-2]) << 10  # VmHWM: 12345 kB
    assert peak_bytes < 200 << 20, f"{peak_bytes / 1e6:.0f} MB"
    assert (source / "model.safetensors").stat().st_size > 200 << 20


def test_permissions_follow_the_umask(run: Run, small_folder: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run("quantize", "-m", small_folder, "-o", tmp_path / "out", "--to", "int4")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_links_as_in_the_hub_cache_are_followed(run: Run, small_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in small_folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    run("quantize", "-m", snapshot, "-o", tmp_path / "out", "--to", "int4")
    shutil.rmtree(snapshot)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert np.array_equal(load_checkpoint(tmp_path / "out").params.language_model.norm.shape, (72,))
