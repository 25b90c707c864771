"""`pg2ref trace` and `pg2ref compare`: files, tables, exit codes."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_runner import PG2REF, Run, make_run, write_picture

import pg2ref
from pg2ref.parity.records import open_record
from pg2ref.recording import record as recording

SCENE = Path(__file__).parent / "data" / "scene.png"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return make_run(capsys, monkeypatch)


@pytest.fixture(scope="module")
def truth(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace with its noise floor, of the prompt and two more tokens."""
    path = tmp_path_factory.mktemp("truth") / "truth.safetensors"
    command = ["trace", SCENE, "-m", small_folder, "--with-floor", "--steps", 2, "-o", path, "-q"]
    subprocess.run([*PG2REF, *map(str, command)], check=True, timeout=120)
    return path


# trace


def test_a_line_says_what_was_written(run: Run, small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.safetensors"
    ran = run("trace", SCENE, "-m", small_folder, "-o", out)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.splitlines()[-1] == f"{out}: 96 stages in f32, 0.7 MB"
    model = pg2ref.load(small_folder, precision="f32")
    expected = model.trace(SCENE, "caption en").stages
    stages = open_record(out).stages
    assert list(stages) == ["input/ids", *expected]
    for name, array in expected.items():
        np.testing.assert_array_equal(stages[name].read(), array, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_json_steps_and_several_images(run: Run, small_folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "run.safetensors", write_picture(tmp_path / "other.png")
    ran = run("trace", SCENE, other, "-m", small_folder, "-p", "same?", "--steps", 3, "--json", "-o", out)
    facts = json.loads(ran.out)
    assert ran.code == 0
    answer = pg2ref.load(small_folder, precision="f32").generate([SCENE, other], "same?", max_new_tokens=4)
    assert facts == {
        "schema": "pg2ref/trace/1",
        "file": str(out),
        "precision": "f32",
        "stages": len(open_record(out).stages) - 1,
        "answer_ids": list(answer.token_ids),
        "file_bytes": out.stat().st_size,
    }
    stages = open_record(out).stages
    assert "image_1/vision/layer_00/query" in stages
    assert stages["step_003/logits"].shape == (1, 2432)
    assert stages["text/layer_00/out"].shape[0] == len(stages["input/ids"].read())


def test_points(run: Run, small_folder: Path, tmp_path: Path) -> None:
    for points, count, first in (("blocks", 14, "pixel_values"), ("layer_01/q", 2, "vision/layer_01/query")):
        run("trace", SCENE, "-m", small_folder, "--points", points, "-o", tmp_path / "t", "-q")
        names = list(open_record(tmp_path / "t").stages)[1:]
        assert (len(names), names[0]) == (count, first)


def test_stats_of_the_truth_hold_its_floor(run: Run, small_folder: Path, truth: Path, tmp_path: Path) -> None:
    out = tmp_path / "stats.safetensors"
    ran = run("trace", SCENE, "-m", small_folder, "--with-floor", "--steps", 2, "--mode", "stats", "-o", out)
    assert ran.code == 0
    full, stats = open_record(truth).stages, open_record(out).stages
    assert list(full) == list(stats)
    for name in full:
        assert stats[name].floors == full[name].floors
        if name != "input/ids":
            assert stats[name].floors.keys() == {"f32", "bf16"}
            assert stats[name].summary is not None
    floors = full["step_002/logits"].floors
    assert 1e-8 < floors["f32"] < 1e-5 < 1e-3 < floors["bf16"] < 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["stats.safetensors"], "the whole truth is gone"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--with-floor", "--precision", "f32"], 2, "--with-floor computes in f64, got --precision f32"),
        (["--points", "("], 2, "--points '(' is no regular expression"),
        (["--points", "no such stage"], 2, "--points fits no stage"),
        (["--steps", "-1"], 2, "invalid value for '--steps'"),
        (["-o", "-"], 2, "a trace cannot go to stdout"),
        (["-o", "nowhere/run"], 2, "expected a file in an existing folder"),
    ],
)
def test_what_cannot_be_traced(
    run: Run, small_folder: Path, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    out = [] if "-o" in options else ["-o", tmp_path / "t"]
    ran = run("trace", SCENE, "-m", small_folder, *out, *options)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert not list(tmp_path.iterdir())


def test_a_trace_goes_through_a_link_and_to_no_device(run: Run, small_folder: Path, tmp_path: Path) -> None:
    """A file that replaced a device or a pipe would be the end of it."""
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert run("trace", SCENE, "-m", small_folder, "-o", tmp_path / "link", "-q").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "run").is_file()
    os.mkfifo(tmp_path / "pipe")
    ran = run("trace", SCENE, "-m", small_folder, "-o", tmp_path / "pipe")
    assert ran.code == 2
    assert "expected the name of a file" in ran.err
    assert (tmp_path / "pipe").is_fifo()


def test_a_full_disk_is_an_error_and_leaves_nothing(
    run: Run, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = recording.FullWriter.__call__

    def full_disk(self: recording.FullWriter, stage: str, array: np.ndarray) -> np.ndarray:
        if stage == "projector/out":
            raise OSError(28, "No space left on device")
        return written(self, stage, array)

    monkeypatch.setattr(recording.FullWriter, "__call__", full_disk)
    ran = run("trace", SCENE, "-m", small_folder, "-o", tmp_path / "t")
    assert ran.code == 1
    assert "cannot be written (No space left on device): choose another place" in ran.err
    assert not list(tmp_path.iterdir())


def test_quantised_weights_are_traced_in_their_own_precision(run: Run, small_folder: Path, tmp_path: Path) -> None:
    run("quantize", "-m", small_folder, "-o", tmp_path / "int8", "--to", "int8")
    ran = run("trace", SCENE, "-m", tmp_path / "int8", "--json", "-o", tmp_path / "t")
    assert json.loads(ran.out)["precision"] == "int8"


# compare


def test_our_precisions_are_within_the_noise(run: Run, small_folder: Path, truth: Path, tmp_path: Path) -> None:
    for precision in ("f32", "bf16"):
        options = ["--precision", precision, "--steps", 2, "-q"]
        run("trace", SCENE, "-m", small_folder, *options, "-o", tmp_path / precision)
        ran = run("compare", truth, tmp_path / precision)
        assert (ran.code, ran.err) == (0, "")
        lines = ran.out.splitlines()
        assert lines[0] == f"{tmp_path / precision} against {truth}, noise of {precision}"
        assert lines[-1].startswith("noise ratio: median ")
        total = len(open_record(truth).stages)
        assert lines[-2] == f"{total} of {total} stages are close"
        shown = [line.split()[0] for line in lines[2:-3]]
        assert shown[:2] == ["input/ids", "pixel_values"]
        assert "text/layer_03/out" in shown
        assert "text/layer_03/query" not in shown
        everything = run("compare", truth, tmp_path / precision, "--all").out.splitlines()
        assert len(everything) == total + 5


def test_a_divergence_is_named(run: Run, truth: Path, tmp_path: Path) -> None:
    stages = {name: stage.read() for name, stage in open_record(truth).stages.items()}
    stages["text/layer_01/gated_gelu"] = stages["text/layer_01/gated_gelu"] * 1.5
    stages["logits"] = stages["logits"][:, :-1]
    np.savez(tmp_path / "port.npz", **stages)
    ran = run("compare", truth, tmp_path / "port.npz", "--precision", "f32")
    assert (ran.code, ran.err) == (1, "")
    lines = ran.out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("text/layer_01/gated_gelu")]
    assert (row[1], row[-1]) == ("5.0e-01", "diverges")
    assert "first divergence: text/layer_01/gated_gelu, error 0.5, allowed " in ran.out
    assert "[1, 2432] against [1, 2431]  shape" in ran.out
    as_json = json.loads(run("compare", truth, tmp_path / "port.npz", "--precision", "f32", "--json").out)
    assert (as_json["schema"], as_json["is_close"]) == ("pg2ref/compare/1", False)
    assert as_json["first_divergence"] == "text/layer_01/gated_gelu"
    stage = next(stage for stage in as_json["stages"] if stage["stage"] == "text/layer_01/gated_gelu")
    assert stage["scale"] == pytest.approx(1.5)


def changed(truth: Path, folder: Path, stages: dict[str, np.ndarray]) -> Path:
    """The truth's stages of the prompt with others among them, as an npz."""
    kept = {name: one.read() for name, one in open_record(truth).stages.items() if not name.startswith("step_")}
    np.savez(folder / "port.npz", **kept | stages)
    return folder / "port.npz"


OUT = "text/layer_01/out"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda out: out[None],
            rf"first divergence: {OUT}, shape \[1, \d+, 72\], expected \[\d+, 72\]: leave out the batch axis, or .*",
        ),
        (lambda out: np.float32(1), rf"first divergence: {OUT}, shape \[\], expected \[\d+, 72\]"),
        (lambda out: out * np.nan, f"first divergence: {OUT}, NaN or infinity"),
        (lambda out: np.where(out > 1, np.inf, out), f"first divergence: {OUT}, NaN or infinity"),
        (lambda out: np.full(out.shape, 1e200), f"first divergence: {OUT}, error .*, allowed .*"),
    ],
    ids=["batch axis", "one number", "NaN", "infinity", "huge"],
)
@pytest.mark.parametrize("with_model", [False, True])
def test_a_stage_that_is_no_such_array_diverges(
    run: Run,
    small_folder: Path,
    truth: Path,
    tmp_path: Path,
    change: Callable[[np.ndarray], np.ndarray],
    line: str,
    with_model: bool,
) -> None:
    """With a message, no warnings and no traceback."""
    other = changed(truth, tmp_path, {OUT: change(open_record(truth).stages[OUT].read())})
    ran = run("compare", truth, other, "--precision", "f32", *(["--isolate", "-m", small_folder] * with_model))
    assert (ran.code, ran.err) == (1, "")
    assert re.search(f"^{line}$", ran.out, flags=re.MULTILINE)


def test_a_batch_axis_is_not_called_an_error_of_numbers(
    run: Run, small_folder: Path, truth: Path, tmp_path: Path
) -> None:
    other = changed(truth, tmp_path, {OUT: open_record(truth).stages[OUT].read()[None]})
    ran = run("compare", truth, other, "--precision", "f32", "-m", small_folder)
    assert ran.out.splitlines()[-1].startswith("diagnosis: no block makes an error in its numbers, only shapes differ")


def test_a_port_that_is_right_needs_no_inputs(run: Run, small_folder: Path, truth: Path, tmp_path: Path) -> None:
    """They are for a diagnosis alone."""
    run("trace", SCENE, "-m", small_folder, "--mode", "stats", "-o", tmp_path / "golden", "-q")
    right = open_record(truth).stages[OUT].read().astype(np.float32)
    for port, code in ((right, 0), (right + 1, 2)):
        np.savez(tmp_path / "port.npz", **{OUT: port})
        ran = run("compare", tmp_path / "golden", tmp_path / "port.npz", "-m", small_folder)
        assert ran.code == code
    assert "pixel_values are needed in full" in ran.err


def test_what_nobody_looked_at_is_told(run: Run, truth: Path, tmp_path: Path) -> None:
    other = changed(truth, tmp_path, {"text/layer_1/out": np.zeros(3)})
    ran = run("compare", truth, other, "--precision", "f32")
    assert "not in REFERENCE: 1 stages, text/layer_1/out among them" in ran.out


def test_isolation_is_told(run: Run, small_folder: Path, truth: Path) -> None:
    ran = run("compare", truth, truth, "--isolate", "-m", small_folder)
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == "no block makes an error of its own"
    found = json.loads(run("compare", truth, truth, "--isolate", "-m", small_folder, "--json").out)
    assert len(found["isolated"]) == 97
    assert {stage["verdict"] for stage in found["isolated"]} == {"equal"}


def test_without_a_floor_it_says_so(run: Run, small_folder: Path, tmp_path: Path) -> None:
    run("trace", SCENE, "-m", small_folder, "-o", tmp_path / "f32", "-q")
    ran = run("compare", tmp_path / "f32", tmp_path / "f32")
    assert ran.code == 0
    assert "REFERENCE has no noise floor, so a fixed error is allowed" in ran.out


def test_what_cannot_be_compared_exits_with_2(run: Run, small_folder: Path, truth: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "names.npz", x=np.ones(3))
    shutil.copy(SCENE, tmp_path / "no.safetensors")
    for arguments, message in [
        ([truth, tmp_path / "absent"], "found nothing"),
        ([tmp_path / "no.safetensors", truth], "not a safetensors file"),
        ([truth, tmp_path / "names.npz"], "has no stage that"),
        ([truth, truth, "--map", "jax"], "map 'jax' is none of"),
        ([truth, truth, "--isolate"], "no model given"),
        ([truth, truth, "-m", tmp_path / "absent"], "absent"),
        ([truth, truth, "--precision", "f16"], "invalid value for '--precision'"),
        ([truth, truth, "--tolerance", "-1"], "expected a relative error, 0 or more"),
        ([truth, truth, "--map", "mlx"], "a trace has our names already: leave out the map"),
        ([truth, truth, "-m", "pg2ref-shapes"], "was recorded from another model: give the one it names"),
        ([truth, truth, "--require", "texts/"], "has no such stage, expected such as"),
    ]:
        ran = run("compare", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err
        assert ran.err.count("\n") == 1


# Transformers, recorded by its own tool.


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_transformers_is_recorded_and_within_the_noise(
    run: Run, small_folder: Path, truth: Path, tmp_path: Path, dtype: str
) -> None:
    import record_transformers
    from click.testing import CliRunner

    out = tmp_path / "theirs.safetensors"
    arguments = [str(small_folder), str(SCENE), "--dtype", dtype, "-o", str(out)]
    recorded = CliRunner().invoke(record_transformers.main, arguments, catch_exceptions=False)
    assert f"93 stages in {dtype}" in recorded.output
    record = open_record(out)
    assert {stage.type for name, stage in record.stages.items() if "layer" in name} == {dtype}
    assert {"torch", "transformers"} <= json.loads(record.facts["versions"]).keys()
    found = json.loads(run("compare", truth, out, "--json").out)
    assert (found["is_close"], found["precision"]) == (True, dtype)
    first = [name for name in found["missing"] if not name.startswith("step_")]
    assert first == [f"vision/layer_{i:02d}/attention_weights" for i in range(3)], "which its fused kernel hides"


@pytest.mark.parity
def test_a_dump_of_transformers_own_debugger_is_compared(
    run: Run, small_folder: Path, truth: Path, tmp_path: Path
) -> None:
    import torch
    import transformers_stages
    from transformers.model_debugging_utils import model_addition_debugger_context

    prepared = pg2ref.load(small_folder, precision="f32").prepare(SCENE, "caption en")
    model = transformers_stages.load_model(small_folder)
    with model_addition_debugger_context(model, str(tmp_path / "dump"), do_prune_layers=False, use_repr=False):
        pixel_values = np.stack(prepared.pixel_values)
        transformers_stages.run(model, pixel_values, prepared.prompt_ids, len(prepared.prompt_ids), lambda *_: None)
    torch.set_printoptions(profile="default")
    arguments = [
        "compare",
        truth,
        tmp_path / "dump",
        "--map",
        "transformers",
        "--isolate",
        "-m",
        small_folder,
        "--json",
    ]
    found = json.loads(run(*arguments).out)
    assert found["is_close"]
    assert len(found["stages"]) == 80
    assert found["extra"] == []
