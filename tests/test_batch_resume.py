"""Stopped batches go on where they ended: nothing is lost, nothing is there twice, whatever stopped them."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cli_runner import PG2REF, Run, write_picture

from pg2ref.batch.resume import ResultsFile
from pg2ref.batch.rows import Row
from pg2ref.errors import Pg2RefError, UsageError

ROWS = 18


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    for i in range(3):
        write_picture(tmp_path / f"{i}.png", shift=50 * i)
    lines = [{"id": f"r{i}", "image": f"{i % 3}.png", "max_new_tokens": 10 + i} for i in range(ROWS)]
    lines[5] = {"id": "r5"}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "in.jsonl"


def arguments(questions: Path, model: Path, *more: str) -> list[str]:
    out = str(questions.parent / "out.jsonl")
    return ["batch", str(questions), "-o", out, "-m", str(model), "-p", "ocr", "--together", "2", *more]


def results(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for one in found:
        one.pop("timing", None)
    return found


def stop_after(lines: int, signal_number: int, command: list[str], part: Path) -> tuple[int, str]:
    """Run it, and send the signal as soon as so many lines are there; exit code and stderr."""
    with subprocess.Popen([*PG2REF, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if part.exists() and part.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.02)
        process.send_signal(signal_number)
        _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_kill_9_again_and_again(run: Run, questions: Path, small_folder: Path) -> None:
    """Killed after each few rows, until there is nothing left to kill."""
    whole = questions.parent / "whole.jsonl"
    assert run(*arguments(questions, small_folder)[:3], whole, *arguments(questions, small_folder)[4:]).code == 1
    out, part = questions.parent / "out.jsonl", questions.parent / "out.jsonl.part"
    killed, lines = 0, 0
    while not out.exists():
        code, _ = stop_after(lines + 5, signal.SIGKILL, arguments(questions, small_folder, "--resume"), part)
        if code == -signal.SIGKILL and not out.exists():
            killed += 1
            assert part.read_bytes().count(b"\n") > lines  # it went on, and did not begin anew
            lines = part.read_bytes().count(b"\n")
    assert killed >= 2
    assert not part.exists()
    assert len(results(out)) == ROWS
    assert results(out) == results(whole)


def test_ctrl_c_leaves_a_file_to_go_on_with(run: Run, questions: Path, small_folder: Path) -> None:
    out, part = questions.parent / "out.jsonl", questions.parent / "out.jsonl.part"
    code, said = stop_after(2, signal.SIGINT, arguments(questions, small_folder), part)
    done = part.read_bytes().count(b"\n")
    assert (code, out.exists()) == (130, False)
    assert said.split("\n") == [f"pg2ref: {done} rows are in {part}: --resume goes on", "", "pg2ref: interrupted", ""]
    assert part.read_bytes().endswith(b"\n")
    ran = run(*arguments(questions, small_folder, "--resume"))
    assert (ran.code, ran.err) == (1, f"pg2ref: 1 rows failed: their lines in {out} say why\n")
    assert [one["row"] for one in results(out)] == list(range(1, ROWS + 1))


def test_a_cut_line_is_dropped(run: Run, questions: Path, small_folder: Path) -> None:
    out, part = questions.parent / "out.jsonl", questions.parent / "out.jsonl.part"
    assert run(*arguments(questions, small_folder)).code == 1
    whole, lines = results(out), out.read_bytes().splitlines(keepends=True)
    for cut in (b"", lines[3][:-1], lines[3][:40]):
        out.unlink()
        part.write_bytes(b"".join(lines[:3]) + cut)
        assert run(*arguments(questions, small_folder, "--resume", "-q")).code == 1
        assert results(out) == whole
        assert out.read_bytes().startswith(b"".join(lines[:3]))


def test_a_complete_batch_stays_as_it_is(run: Run, questions: Path, small_folder: Path) -> None:
    out = questions.parent / "out.jsonl"
    run(*arguments(questions, small_folder))
    before = out.read_bytes()
    ran = run(*arguments(questions, small_folder, "--resume"))
    assert (ran.code, ran.out, ran.err.splitlines()[0]) == (1, "", f"pg2ref: {out} is complete")
    assert "1 rows failed" in ran.err
    assert out.read_bytes() == before
    with open(questions, "a") as more:
        more.write('{"image": "0.png"}\n')
    ran = run(*arguments(questions, small_folder, "--resume"))
    assert (ran.code, f"all rows, got those of the first {ROWS}: choose another --out" in ran.err) == (2, True)
    assert out.read_bytes() == before
    assert not (questions.parent / "out.jsonl.part").exists()


def test_without_resume_a_stopped_run_is_not_overwritten(run: Run, questions: Path, small_folder: Path) -> None:
    part = questions.parent / "out.jsonl.part"
    part.write_text("{}\n")
    ran = run(*arguments(questions, small_folder))
    assert (ran.code, part.read_text()) == (2, "{}\n")
    assert "add --resume to go on, or delete it" in ran.err


ROW = Row(1, "a", "ocr", ("a.png",))
MODEL = {"id": "mix", "adapters": ["lora"]}


def result(**input_fields: Any) -> dict[str, Any]:
    asked = {"prompt": "ocr", "images": [{"path": "a.png"}], **input_fields}
    return {"id": "a", "row": 1, "input": asked, "model": {**MODEL, "dtype": "f32"}}


@pytest.mark.parametrize(
    ("line", "is_same"),
    [
        (result(), True),
        (result(images=[{"path": os.path.abspath("a.png")}]), True),
        ({"id": "a", "row": 1, "message": "bad"}, True),
        ({**result(), "id": "b"}, False),
        ({**result(), "row": 2}, False),
        (result(prompt="caption en"), False),
        (result(images=[{"path": "b.png"}]), False),
        (result(images=[{"path": None}]), False),
        ({**result(), "model": {**MODEL, "id": "pt"}}, False),
        ({**result(), "model": {**MODEL, "adapters": []}}, False),
        ({"id": "a", "row": 1, "input": None}, False),
        ([], False),
        ("", False),
    ],
)
def test_lines_of_another_batch_are_refused(line: Any, is_same: bool, tmp_path: Path) -> None:
    (tmp_path / "out.part").write_text(json.dumps(line) + "\n")
    results_file = ResultsFile(tmp_path / "out", resume=True, model=MODEL)
    if is_same:
        assert results_file.skip_done(iter([ROW])) == 1
    else:
        with pytest.raises(UsageError, match="expected the result of row 1, id 'a', got another"):
            results_file.skip_done(iter([ROW]))
    results_file.close()


@pytest.mark.parametrize(("path", "is_same"), [("clip", True), ("clip/1.png", True), ("clip2/1.png", False)])
def test_frames_are_of_the_video(path: str, is_same: bool, tmp_path: Path) -> None:
    (tmp_path / "out.part").write_text(json.dumps(result(images=[{"path": path}])) + "\n")
    results_file = ResultsFile(tmp_path / "out", resume=True, model=MODEL)
    rows = iter([Row(1, "a", "ocr", video="clip")])
    if is_same:
        assert results_file.skip_done(rows) == 1
    else:
        with pytest.raises(UsageError, match="got another"):
            results_file.skip_done(rows)
    results_file.close()


def test_more_lines_than_rows(tmp_path: Path) -> None:
    (tmp_path / "out.part").write_text('{"id": "a", "row": 1}\n' * 2)
    results_file = ResultsFile(tmp_path / "out", resume=True, model=MODEL)
    with pytest.raises(UsageError, match="expected the result of no more rows"):
        results_file.skip_done(iter([ROW]))
    results_file.close()


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    first = ResultsFile(tmp_path / "out", resume=True, model=MODEL)
    with pytest.raises(UsageError, match="being written by another process"):
        ResultsFile(tmp_path / "out", resume=True, model=MODEL)
    first.close()
    ResultsFile(tmp_path / "out", resume=True, model=MODEL).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "out.part").symlink_to("/dev/full")
    results_file = ResultsFile(tmp_path / "out", resume=True, model=MODEL)
    with pytest.raises(Pg2RefError, match="No space left on device"):
        results_file.append("{}")
    results_file._file.close()
