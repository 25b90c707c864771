"""`pg2ref bench`: what is counted, what is reported, the picture, and what is refused. No test depends on a time."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Run, make_run
from PIL import Image
from small_models import BASE, CASES, open_model, write_folder

from pg2ref.benchmark import measure, picture, work
from pg2ref.benchmark.report import Limit, Measure, Report
from pg2ref.benchmark.work import Work
from pg2ref.kernels import compiling, machine_limits
from pg2ref.kernels.simd.cpu import cpu


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, with little memory to read and few products."""
    monkeypatch.setattr(measure, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "MULTIPLY_TURNS", 1 << 10)
    return make_run(capsys, monkeypatch)


def a_report(share: float = 0.5) -> Report:
    limits = (Limit("read", (30e9, 32e9, 31e9), False), Limit("bf16", (460e9,), True))
    part = Measure("decode", Work({"bf16": 4}, 31_000_000_000), (1 / share, 2.0 / share), (1.0, 2.0))
    about = {"id": "m", "weights": "bf16", "dtype": "bf16"}
    return Report(2, "avx2", 2, limits, about, {"image_tokens": 256, "text_tokens": 10}, (part,))


def test_the_model_is_measured_as_shares_of_the_limits(run: Run, small_folder: Path) -> None:
    ran = run("bench", "-m", small_folder, "--repeat", 2, "-n", 3, "--json", "--precision", "bf16")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["schema"] == "pg2ref/bench/1"
    assert report["machine"]["path"] == cpu().name
    assert report["machine"]["threads"] == compiling.num_threads()
    assert report["machine"]["cpu"]
    assert {name: limit["unit"] for name, limit in report["limits"].items()} == {
        "read": "GB/s",
        "mapped": "GB/s",
        "f32": "GFLOP/s",
        "bf16": "GFLOP/s",
        "int8": "GOP/s",
    }
    assert report["input"]["image_tokens"] == 16
    assert list(report["measures"]) == ["vision", "prefill", "decode"]
    for name, part in report["measures"].items():
        assert len(part["runs_ms"]) == len(part["limit_ms"]) == 2
        assert min(*part["runs_ms"], *part["limit_ms"], part["share"], part["rate"], part["bytes"]) > 0
        assert part["limited_by"] == ("read" if name == "decode" else "bf16")
    assert all(rate > 0 for limit in report["limits"].values() for rate in limit["runs"])
    for name in ("read", "mapped"):
        assert len(report["limits"][name]["runs"]) == 2 * 3  # between any two tokens
    assert report["versions"]["numba"]


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_a_quantised_model_is_measured_by_its_own_products(
    run: Run, small_folder: Path, tmp_path: Path, to: str
) -> None:
    folder = tmp_path / to
    assert run("quantize", "-m", small_folder, "-o", folder, "--to", to).code == 0
    ran = run("bench", "-m", folder, "--repeat", 1, "-n", 2, "--json")
    assert ran.code == 0, ran.err
    measures = json.loads(ran.out)["measures"]
    assert measures["vision"]["limited_by"] == "bf16"
    assert "int8" in measures["prefill"]["limited_by"]


def test_without_a_model_the_machine_alone_is_measured(run: Run, tmp_path: Path) -> None:
    ran = run("bench", "--repeat", 2, "--plot", tmp_path / "machine.png")
    assert ran.code == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == ["read", "f32", "bf16", "int8"]
    with Image.open(tmp_path / "machine.png") as drawn:
        assert drawn.size == (picture.WIDTH_PX, 2 * picture.TITLE_PX + 4 * picture.ROW_PX)


def test_the_table_names_shares_and_emulated_products() -> None:
    lines = a_report().to_table().splitlines()
    assert lines[0].endswith("avx2, 2 threads, median of 2")
    assert lines[1].split() == ["read", "31.0", "GB/s"]
    assert lines[2].split() == ["bf16", "460.0", "GFLOP/s", "(emulated)"]
    assert lines[-1].split() == ["decode", "3000.0", "ms/token", "10.3", "GB/s", "50%", "of", "read"]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_bar_is_filled_as_far_as_the_share(share: float) -> None:
    drawn = np.asarray(picture.draw(a_report(share or 1e-9)).convert("RGB"))
    left, middle = picture.MARGIN_PX + picture.NAME_PX, picture.TITLE_PX + picture.ROW_PX // 2
    row = drawn[middle, left : left + picture.BAR_PX + 1]
    filled = (row == (0x2F, 0x6F, 0xB2)).all(axis=1).sum()
    assert filled == round(share * picture.BAR_PX) + 1


def test_the_picture_replaces_an_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "bars.png"
    path.write_text("old")
    picture.save(a_report(), path)
    with Image.open(path) as drawn:
        drawn.load()
        assert drawn.size == (picture.WIDTH_PX, 2 * picture.TITLE_PX + picture.ROW_PX)
    assert list(tmp_path.iterdir()) == [path]


def test_operations_and_bytes_of_a_model_worked_out_by_hand(tmp_path: Path) -> None:
    write_folder(tmp_path, CASES["base"])
    model = open_model(tmp_path)
    text, vision = BASE["text_config"], BASE["vision_config"]
    D, F, V, L, H, N, K = 32, 56, 304, 4, 16, 4, 2
    E, M, I = 24, 44, 4  # noqa: E741 - the dimension key
    assert (text["hidden_size"], text["intermediate_size"], vision["hidden_size"]) == (D, F, E)
    layer = D * N * H * 2 + D * K * H * 2 + 3 * D * F
    T = 9
    expected = 2 * T * L * layer + 2 * D * V + L * 4 * N * H * T * T
    assert work.prefill_work(model, T, "f32").operations == {"f32": expected}
    seen = 2 * I * (3 * 14 * 14 * E + 2 * (4 * E * E + 2 * E * M) + E * D) + 2 * 4 * I * I * E
    assert work.vision_work(model, "bf16").operations == {"bf16": seen}
    cache = model.empty_cache(12, T)
    cache.length = T
    size = model.params.language_model.embed_tokens.itemsize
    numbers = L * (layer + 4 * D) + D + V * D + D
    keys = 2 * (T + 1) + 2 * text["sliding_window"]  # two layers of each kind
    decoded = work.decode_work(model, cache, "f32")
    assert decoded.bytes_read == size * numbers + 2 * keys * K * H * cache.key_LSKH.itemsize
    assert decoded.operations == {"f32": 2 * (L * layer + D * V) + 4 * N * H * keys}


@pytest.mark.parametrize("kind", machine_limits.KINDS)
def test_products_in_registers_are_as_many_as_are_counted(kind: str) -> None:
    once, twice = machine_limits.multiply_repeatedly(kind, 3), machine_limits.multiply_repeatedly(kind, 6)
    lanes, sums, threads = cpu().lanes, machine_limits.num_sums(cpu()), compiling.num_threads()
    numbers = threads * lanes * sums * {"f32": 1, "bf16": 2, "int8": 4}[kind]
    assert (once.operations, twice.operations) == (6 * numbers, 12 * numbers)
    assert once.is_emulated == {"f32": not cpu().fused, "bf16": not cpu().bf16_dot, "int8": not cpu().int8_dot}[kind]


@pytest.mark.parametrize("kind", machine_limits.KINDS)
def test_every_turn_multiplies(kind: str) -> None:
    """With factors of one the sums grow with each turn: LLVM has left nothing out. A code of 129 stands for 1."""
    one = {"f32": 0x3F800000, "bf16": 0x3F803F80, "int8": 0x80808081}[kind]
    operand = np.full(cpu().lanes, one, np.uint32)
    out_IW = machine_limits.rows_for(1)
    machine_limits.multiply_in_registers(machine_limits.KINDS[kind], 4, operand, out_IW, 1)
    sums = range(machine_limits.num_sums(cpu()))
    words = out_IW[0, : cpu().lanes].copy()
    words[0] -= operand[0]  # added to keep the operand alive
    if kind == "int8":
        grown = sum(after_four_turns(number) for number in sums)
        assert (words == grown & 0xFFFFFFFF).all()
    else:
        each = {"f32": 1, "bf16": 2}[kind]
        assert (words.view(np.float32)[1:] == sum(number + 4 * each for number in sums)).all()


def after_four_turns(number: int) -> int:
    """Each turn adds the four bytes of the sum, times the codes or, without the instruction, what they stand for."""
    codes = np.array([129, 128, 128, 128]) - (0 if cpu().int8_dot else 128)
    for _ in range(4):
        number += int(codes @ np.array([number], np.int32).view(np.int8))
    return number


def test_reading_reads_every_word() -> None:
    threads = compiling.num_threads()
    words_W = np.arange(machine_limits.TURN_BYTES // 4 * threads * 3, dtype=np.uint32)
    out_IW = machine_limits.rows_for(threads)
    machine_limits.read_streams(words_W, out_IW, threads)
    assert int(out_IW.sum()) == int(words_W.sum()) + int(words_W[0])
    assert machine_limits.read(words_W) == words_W.nbytes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--image", "x.png"], "add -m FOLDER"),
        (["-p", "ocr"], "add -m FOLDER"),
        (["--precision", "bf16"], "add -m FOLDER"),
        (["--repeat", "0"], "--repeat"),
        (["-n", "0"], "--new-tokens"),
        (["--plot", "bars.txt"], "got '.txt'"),
        (["--plot", "bars.psd"], "got '.psd'"),  # which Pillow reads and does not write
        (["--plot", "nowhere/bars.png"], "expected a folder that exists"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.setattr(measure, "Machine", None)  # before anything is measured
    ran = run("bench", "--repeat", 1, *arguments)
    assert ran.code == 2
    assert told in ran.err
