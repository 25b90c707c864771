"""A batch over a Ray cluster of two workers, one of which is killed half way. Runs where the `ray` extra is installed.

The cluster is started here, on loopback; everything else runs in processes of its own, as Ray changes the one it is in.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cli_runner import PG2REF, Run, write_picture

ROWS = 40
SLOWER = 0.3  # seconds a row, so that there is time to kill a worker while it works
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the `ray` extra")
CLUSTER = """
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("removed", flush=True)
cluster.shutdown()
"""
# A worker that notes its process and takes its time; it is what the cluster runs, as Ray ships functions of a script.
DRIVER = f"""
import os, sys, time
from pathlib import Path
from pg2ref.batch import ray_engine
from pg2ref.cli.main import main

notes = sys.argv[1]

def open_and_note(self, real=ray_engine.Worker.open):
    Path(notes, str(os.getpid())).touch()
    real(self)

def answer_slowly(self, rows, real=ray_engine.Worker.answer):
    time.sleep({SLOWER} * len(rows))
    return real(self, rows)

ray_engine.Worker = type("Slow", (ray_engine.Worker,), {{"open": open_and_note, "answer": answer_slowly}})
main(sys.argv[2:])
"""


class Cluster:
    """A running cluster of two nodes, and one fewer for every `remove_node`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def remove_node(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("remove\n")
        self.process.stdin.flush()
        assert self.answer() == "removed"

    def stop(self) -> None:
        self.process.communicate(timeout=120)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    assert cluster.address
    yield cluster
    cluster.stop()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    for i in range(3):
        write_picture(tmp_path / f"{i}.png", shift=50 * i)
    lines: list[dict[str, Any]] = [
        {"id": f"r{i}", "image": f"{i % 3}.png", "max_new_tokens": 2 + i % 5} for i in range(ROWS)
    ]
    lines[5]["image"] = "nowhere.png"
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "in.jsonl"


def results(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for one in found:
        one.pop("timing", None)
    return found


@needs_ray
@pytest.mark.parametrize("what", ["process", "node"])
def test_a_worker_is_killed_half_way(
    run: Run, cluster: Cluster, questions: Path, small_folder: Path, tmp_path: Path, what: str
) -> None:
    """Its rows are answered by others: every row once, in order, as without a cluster."""
    arguments = ["-m", str(small_folder), "-p", "ocr", "--together", "2"]
    alone, out = tmp_path / "alone.jsonl", tmp_path / "out.jsonl"
    assert run("batch", questions, "-o", alone, *arguments).code == 1
    notes = tmp_path / "notes"
    notes.mkdir()
    on_ray = ["batch", questions, "-o", out, *arguments, "--engine", "ray", "--ray-address", cluster.address]
    command = [sys.executable, "-c", DRIVER, str(notes), *map(str, on_ray)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        part, deadline = tmp_path / "out.jsonl.part", time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if part.exists() and part.read_bytes().count(b"\n") >= ROWS // 5 and len(list(notes.iterdir())) == 2:
                break
            time.sleep(0.05)
        assert part.exists(), process.communicate(timeout=60)
        if what == "process":
            os.kill(int(sorted(path.name for path in notes.iterdir())[0]), signal.SIGKILL)
        else:
            cluster.remove_node()
        stdout, stderr = process.communicate(timeout=180)
    assert (process.returncode, stdout) == (1, "")
    assert stderr.splitlines()[-1] == f"pg2ref: 1 rows failed: their lines in {out} say why"
    assert len(list(notes.iterdir())) == (3 if what == "process" else 2)  # a new worker where the node is still there
    assert results(out) == results(alone)


@needs_ray
def test_no_cluster_answers(questions: Path, small_folder: Path) -> None:
    command = ["batch", str(questions), "-o", "-", "-m", str(small_folder), "-p", "ocr", "--engine", "ray"]
    ran = subprocess.run(
        [*PG2REF, *command, "--ray-address", "127.0.0.1:1"], capture_output=True, text=True, timeout=180
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("pg2ref: no Ray cluster answers at 127.0.0.1:1")


def test_the_extra_is_named(run: Run, questions: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ran = run("batch", questions, "-o", "-", "-m", small_folder, "-p", "ocr", "--engine", "ray")
    assert (ran.code, ran.out) == (2, "")
    assert "pip install 'pg2ref[ray]'" in ran.err
