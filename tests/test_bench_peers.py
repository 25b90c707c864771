"""tools/bench_peers.py and its table: ratios, bars, the README's block, which folder serves what, and a small run."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from peer_table import BARS, Bar, Row, Side, markdown_table, plain_table, replace_block

BEGIN, END = "<!-- bench:begin avx2 -->", "<!-- bench:end avx2 -->"
OWN, PEER = Side("pg2ref bf16", [3.0, 1.0, 2.0], "ms"), Side("Transformers bf16", [4000.0, 8000.0, 5000.0], "ms")
RATIO = Row("decode bf16", OWN, PEER)
ALONE = Row("anonymous memory", Side("pg2ref bf16", [401.0], "MB"), note="peak")


def test_a_ratio_is_that_of_the_medians() -> None:
    assert RATIO.value == 2 / 5000
    assert ALONE.value == 401


@pytest.mark.parametrize(
    ("bar", "value", "met"),
    [
        (Bar(0.45), 0.45, True),
        (Bar(0.45), 0.46, False),
        (Bar(90, is_least=True), 90.0, True),
        (Bar(90, is_least=True), 89.0, False),
    ],
)
def test_a_bar_is_met_or_missed(bar: Bar, value: float, met: bool) -> None:
    row = Row("x", Side("pg2ref", [value], "%"))
    assert bar.is_met(row) is met
    assert ("ok" if met else "missed") in plain_table([row], {"x": bar})
    assert row.to_dict({"x": bar})["met"] is met


def test_the_plain_table_has_both_sides_and_no_verdict_unless_asked() -> None:
    lines = plain_table([RATIO, ALONE], {}).splitlines()
    assert lines[0].split() == "decode bf16 pg2ref bf16 2.0 ms Transformers bf16 5,000 ms ratio 0.00".split()
    assert lines[1].split() == "anonymous memory pg2ref bf16 401 MB peak".split()
    judged = plain_table([RATIO, ALONE], BARS).splitlines()
    assert judged[0].endswith("ok (<= 0.45)")
    assert judged[1].endswith("missed (<= 400)   peak")


def test_the_markdown_table_has_as_many_cells_in_each_row() -> None:
    heading, _, *rows = markdown_table([RATIO, ALONE], "A machine.").splitlines()
    assert heading == "A machine."
    assert {row.count("|") for row in rows} == {6}
    assert rows[2] == "| decode bf16 | 2.0 ms | Transformers bf16 | 5,000 ms | 0.00 |"


def test_the_block_of_the_path_alone_is_replaced() -> None:
    text = f"before\n{BEGIN}\nold\nold too\n{END}\nafter {{1}} \\1\n{BEGIN.replace('avx2', 'generic')}\n"
    replaced = replace_block(text, r"new \1", "avx2")
    assert replaced == text.replace("old\nold too", "new \\1")
    assert replace_block(replaced, "newer", "avx2").count(BEGIN) == 1


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"])
def test_a_readme_without_its_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected one <!-- bench:begin avx2 -->"):
        replace_block(text, "new", "avx2")


@pytest.mark.parametrize("folder", ["", "kernels"])
def test_the_readme_has_the_marks(folder: str) -> None:
    readme = (Path(__file__).parent.parent / folder / "README.md").read_text(encoding="utf-8")
    for path in ("avx512_bf16", "avx2"):
        assert replace_block(readme, "", path)


def test_a_folder_is_known_by_what_it_holds(small_folder: Path) -> None:
    import bench_peers
    import click

    assert bench_peers.sort_folders([small_folder]) == (small_folder, None, None, None)
    with pytest.raises(click.UsageError, match="give one of each kind"):
        bench_peers.sort_folders([small_folder, small_folder])


def test_each_contest_names_measures_that_have_a_bar() -> None:
    import bench_peers

    folders = bench_peers.Folders(*(Path(name) for name in ("plain", "large", "int8", "int4")))
    found = [measure for contest in bench_peers.contests(folders) for measure in contest.parts]
    assert set(found) <= set(bench_peers.MEASURES)
    assert len(found) == len(set(found)) == 8
    assert not list(bench_peers.contests(bench_peers.Folders(None, None, Path("int8"), None)))


def test_a_gguf_file_runs_beside_like_weights() -> None:
    import bench_peers
    import click

    folders = bench_peers.Folders(Path("plain"), None, None, Path("int4"))
    files = [Path("a/b.3.bf16.gguf"), Path("b.q4_0.gguf")]
    first, second = bench_peers.llama_contests(folders, files)
    assert (first.own, first.peer) == (("pg2ref", "plain", "bf16"), ("llama.cpp", "a/b.3.bf16.gguf", "bf16"))
    assert (second.own, second.peer) == (("pg2ref", "int4", "int4"), ("llama.cpp", "b.q4_0.gguf", "q4_0"))
    assert {*first.parts, *second.parts} <= set(bench_peers.MEASURES)
    for name in ("b.q8_0.gguf", "b.gguf", "b.f16.gguf"):
        with pytest.raises(click.UsageError, match=r"expected NAME.bf16.gguf or NAME.q4_0.gguf"):
            list(bench_peers.llama_contests(folders, [Path(name)]))


def test_a_peer_that_fails_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own words, not only that it failed."""
    import bench_peers
    from watched_process import ProgramFailed

    monkeypatch.setattr(bench_peers, "own_command", lambda *_: [sys.executable, "-c", "raise SystemExit('no room')"])
    with pytest.raises(ProgramFailed, match="no room"):
        list(bench_peers.whole_process(tmp_path, 1, {}))


@pytest.mark.parity
def test_both_sides_are_measured_in_turn(small_folder: Path, tmp_path: Path) -> None:
    import bench_peers

    output, readme = tmp_path / "results.json", tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    arguments = [small_folder, "--repeat", 2, "--new-tokens", 2, "--measures", "decode bf16", "-o", output]
    ran = CliRunner().invoke(bench_peers.main, [*map(str, arguments), "--readme", str(readme)])
    assert ran.exit_code == 0, ran.output
    report = json.loads(output.read_text())
    assert report["schema"] == "pg2ref/bench-peers/1"
    (row,) = report["rows"]
    assert row["own"]["name"] == "pg2ref bf16"
    assert row["peer"]["name"].startswith("Transformers 5.23.0 bf16")
    assert len(row["own"]["runs"]) == len(row["peer"]["runs"]) == 2
    assert row["value"] > 0
    assert "| decode bf16 |" in readme.read_text()
