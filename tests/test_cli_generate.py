"""`pg2ref generate`: the answer on stdout and nothing else there, options that do what they say, quiet ends."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from cli_runner import PG2REF, Run, run_process, write_picture

from pg2ref.inputs.tokenizer import Tokenizer
from pg2ref.model.backend import has_bf16_dot

RESULT_FIELDS = {
    "": "schema model input text objects problems finish_reason tokens policy timing warnings versions",
    "model": "id revision dtype backend weights builtin adapters",
    "input": "images prompt ids image_tokens",
    "policy": "resize window loc_scale",
    "timing": "load_s vision_s prefill_s decode_s decode_tok_s",
    "versions": "pg2ref numpy pillow numba python",
}


@pytest.fixture
def stopping_folder(run: Run, picture: Path, small_folder: Path, tmp_path: Path) -> Path:
    """The small checkpoint, but the third different token of its greedy answer ends an answer, 107 likewise."""
    tokens = answer(run, picture, "-m", small_folder, "-n", 20)["tokens"]
    stops_with = list(dict.fromkeys(token["id"] for token in tokens))[2]
    folder = shutil.copytree(small_folder, tmp_path / "stopping")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stops_with, 107]}))
    return folder


@pytest.fixture
def endless_folder(small_folder: Path, tmp_path: Path) -> Path:
    """The small checkpoint, but its answers never end."""
    folder = shutil.copytree(small_folder, tmp_path / "endless")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    return folder


def answer(run: Run, *arguments: object, stdin: bytes = b"") -> dict[str, Any]:
    ran = run("generate", *arguments, "--json", stdin=stdin)
    assert (ran.code, ran.err) == (0, "")
    parsed: dict[str, Any] = json.loads(ran.out)
    return parsed


def logprobs(result: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in result["tokens"]]


def test_json_has_the_documented_fields(run: Run, picture: Path, small_folder: Path) -> None:
    result = answer(run, picture, "-m", small_folder, "-n", 6, "--logprobs", 3)
    assert result["schema"] == "pg2ref/result/1"
    for part, fields in RESULT_FIELDS.items():
        assert set(result[part] if part else result) == set(fields.split())
    assert all(set(token) == {"id", "text", "logprob", "top"} for token in result["tokens"])
    assert all(set(other) == {"id", "text", "logprob"} for token in result["tokens"] for other in token["top"])
    (image,) = result["input"]["images"]
    assert set(image) == {"path", "sha256", "size", "frame"}
    assert (image["path"], image["size"]) == (str(picture), [60, 40])
    assert re.fullmatch("[0-9a-f]{64}", image["sha256"])
    assert result["input"]["ids"].count(2352) == result["input"]["image_tokens"] == 16
    assert result["model"] == {
        "id": str(small_folder),
        "revision": None,
        "dtype": "bf16" if has_bf16_dot() else "f32",
        "backend": "numba",
        "weights": "bf16",
        "builtin": False,
        "adapters": [],
    }
    assert all(result["timing"].values())


def test_json_agrees_with_the_streamed_text(run: Run, picture: Path, small_folder: Path) -> None:
    streamed = run("generate", picture, "-m", small_folder, "-n", 40)
    result = answer(run, picture, "-m", small_folder, "-n", 40)
    assert streamed == (0, result["text"] + "\n", "")
    assert len(result["text"]) > 40
    tokenizer = Tokenizer.load(small_folder, 2352)
    assert result["text"] == tokenizer.detokenize([token["id"] for token in result["tokens"]])
    assert [token["text"] for token in result["tokens"]] == [tokenizer.piece(t["id"]) for t in result["tokens"]]
    assert all(value < 0 for value in logprobs(result))


def test_logprobs_lists_the_likeliest(run: Run, picture: Path, small_folder: Path) -> None:
    result = answer(run, picture, "-m", small_folder, "-n", 5, "--logprobs", 4)
    for token in result["tokens"]:
        values = [other["logprob"] for other in token["top"]]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert (token["top"][0]["id"], values[0]) == (token["id"], token["logprob"])  # greedy
    lines = run("generate", picture, "-m", small_folder, "-n", 5, "--logprobs", 4).out.splitlines()
    assert len(lines) == 5
    assert lines[0].split()[0] == f"{result['tokens'][0]['logprob']:.3f}"
    assert answer(run, picture, "-m", small_folder, "-n", 2)["tokens"][0]["top"] == []


def test_without_cache_the_answer_is_the_same(run: Run, picture: Path, small_folder: Path) -> None:
    cached = answer(run, picture, "-m", small_folder, "-n", 12)
    anew = answer(run, picture, "-m", small_folder, "-n", 12, "--no-cache")
    assert [t["id"] for t in anew["tokens"]] == [t["id"] for t in cached["tokens"]]
    assert logprobs(anew) == pytest.approx(logprobs(cached), abs=1e-4)


def test_f64_is_close_and_not_the_same(run: Run, picture: Path, small_folder: Path) -> None:
    single = answer(run, picture, "-m", small_folder, "-n", 3, "--precision", "f32")
    double = answer(run, picture, "-m", small_folder, "-n", 3, "--precision", "f64")
    assert double["model"]["dtype"] == "f64"
    assert logprobs(double) == pytest.approx(logprobs(single), abs=1e-4)
    assert logprobs(double) != logprobs(single)


def test_beams_find_a_likelier_answer(run: Run, picture: Path, stopping_folder: Path) -> None:
    greedy = answer(run, picture, "-m", stopping_folder, "-n", 20)
    beams = answer(run, picture, "-m", stopping_folder, "-n", 20, "--beams", 3)
    assert greedy["finish_reason"] == beams["finish_reason"] == "stop"
    assert sum(logprobs(beams)) > sum(logprobs(greedy))
    assert beams["tokens"][-1]["id"] in (greedy["tokens"][-1]["id"], 107)
    assert run("generate", picture, "-m", stopping_folder, "--beams", 3).out == beams["text"] + "\n"


def test_an_end_of_text_token_ends_the_answer_and_is_not_printed(
    run: Run, picture: Path, stopping_folder: Path
) -> None:
    result = answer(run, picture, "-m", stopping_folder, "-n", 20)
    ids = [token["id"] for token in result["tokens"]]
    assert result["finish_reason"] == "stop"
    assert ids[-1] not in ids[:-1]
    assert result["text"] == Tokenizer.load(stopping_folder, 2352).detokenize(ids[:-1])


@pytest.mark.parametrize("count", [1, 5])
def test_max_new_tokens(run: Run, picture: Path, small_folder: Path, count: int) -> None:
    result = answer(run, picture, "-m", small_folder, "--max-new-tokens", count)
    assert (len(result["tokens"]), result["finish_reason"]) == (count, "length")
    assert (result["timing"]["decode_tok_s"] is None) == (count == 1)


def test_a_seed_decides_what_is_drawn(run: Run, picture: Path, small_folder: Path) -> None:
    def drawn(seed: int, *more: object) -> list[int]:
        result = answer(run, picture, "-m", small_folder, "-n", 8, "--temperature", 1.5, "--seed", seed, *more)
        return [token["id"] for token in result["tokens"]]

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in (1, 2, 3)}) == 3
    greedy = [token["id"] for token in answer(run, picture, "-m", small_folder, "-n", 8)["tokens"]]
    assert drawn(1) != greedy
    assert drawn(1, "--top-k", 1) == greedy
    assert drawn(1, "--top-p", 1e-9) == greedy


def test_the_coldest_temperature_is_greedy(run: Run, picture: Path, small_folder: Path) -> None:
    cold = answer(run, picture, "-m", small_folder, "-n", 8, "--temperature", 1e-320)
    assert cold["text"] == answer(run, picture, "-m", small_folder, "-n", 8)["text"]


def test_several_images_come_in_their_order(run: Run, picture: Path, small_folder: Path, tmp_path: Path) -> None:
    other = write_picture(tmp_path / "other.png", (31, 77), shift=90)
    both = answer(run, picture, other, "-m", small_folder, "-n", 2, "-p", "same?")
    assert [image["size"] for image in both["input"]["images"]] == [[60, 40], [31, 77]]
    assert both["input"]["ids"][:33] == [2352] * 32 + [2]
    swapped = answer(run, other, picture, "-m", small_folder, "-n", 2, "-p", "same?")
    assert swapped["input"]["ids"] == both["input"]["ids"]
    assert logprobs(swapped) != logprobs(both)


def test_an_image_from_stdin(run: Run, picture: Path, small_folder: Path) -> None:
    named = answer(run, picture, "-m", small_folder, "-n", 4)
    piped = answer(run, "-", "-m", small_folder, "-n", 4, stdin=picture.read_bytes())
    assert logprobs(piped) == logprobs(named)
    assert piped["input"]["images"] == [{"path": None, "sha256": None, "size": [60, 40], "frame": None}]


@pytest.mark.parametrize("stored", [b"detect K\xc3\xa4fer", b"detect K\xc3\xa4fer\n", b"detect K\xc3\xa4fer\r\n"])
def test_a_prompt_from_stdin(run: Run, picture: Path, small_folder: Path, stored: bytes) -> None:
    piped = answer(run, picture, "-m", small_folder, "-n", 2, "-p", "-", stdin=stored)
    assert piped["input"] == answer(run, picture, "-m", small_folder, "-n", 2, "-p", "detect Käfer")["input"]


def test_bad_stdin(run: Run, picture: Path, small_folder: Path) -> None:
    ran = run("generate", picture, "-m", small_folder, "-p", "-", stdin=b"caption \xff")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err == "pg2ref: the prompt on stdin is not UTF-8: byte 8 is 0xFF; convert it\n"
    ran = run("generate", "-", "-m", small_folder, stdin=b"")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (4, "", 1)
    assert ran.err.startswith("pg2ref: <stdin>: expected an image, got an empty file")


def test_stdin_is_not_waited_for_without_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    from pg2ref.cli.main import main

    monkeypatch.setattr("sys.stdin", object())  # reading would be an AttributeError
    with pytest.raises(SystemExit) as ended:
        main(["generate", "-p", "-", "-m", "nowhere"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("choices", "resize", "window"),
    [
        ((), "bicubic", "transformers"),
        (("--preset", "big_vision"), "bilinear", "big_vision"),
        (("--preset", "keras"), "bilinear", "keras"),
        (("--preset", "gemma_cpp"), "nearest", "gemma_cpp"),
        (("--preset", "keras", "--resize", "nearest"), "nearest", "keras"),
        (("--resize", "bilinear", "--window", "transformers_4"), "bilinear", "transformers_4"),
    ],
)
def test_policies_are_recorded_and_change_the_numbers(
    run: Run, picture: Path, small_folder: Path, choices: tuple[str, ...], resize: str, window: str
) -> None:
    """The small model's window, 9, is shorter than its prefix of 20, so its rule matters from the first token on."""
    result = answer(run, picture, "-m", small_folder, "-n", 1, *choices)
    assert result["policy"] == {"resize": resize, "window": window, "loc_scale": 1023}
    plain = answer(run, picture, "-m", small_folder, "-n", 1)
    assert (logprobs(result) == logprobs(plain)) == (not choices)


def test_the_window_rule_of_big_vision_is_met_behind_the_prefix(run: Run, picture: Path, small_folder: Path) -> None:
    """It has none; Transformers' lets the prefix read itself wholly, but not the answer the prefix."""
    theirs = logprobs(answer(run, picture, "-m", small_folder, "-n", 4, "--window", "big_vision"))
    ours = logprobs(answer(run, picture, "-m", small_folder, "-n", 4))
    assert theirs[0] == ours[0]
    assert theirs[1] != ours[1]


def test_a_resize_rule_changes_pixels_only(run: Run, small_folder: Path, tmp_path: Path) -> None:
    """An image that has the model's size already is the same under every rule."""
    exact = write_picture(tmp_path / "exact.png", (56, 56))
    found = [
        logprobs(answer(run, exact, "-m", small_folder, "-n", 2, "--resize", rule)) for rule in ("bicubic", "nearest")
    ]
    assert found[0] == found[1]


def test_warnings_and_quiet(run: Run, picture: Path, small_folder: Path) -> None:
    loud = run("generate", picture, "-m", small_folder, "-n", 2, "-p", "caption en\n")
    assert loud.err.startswith("pg2ref: warning: the prompt ends with a newline")
    assert run("generate", picture, "-m", small_folder, "-n", 2, "-p", "caption en\n", "-q") == (0, loud.out, "")
    result = run("generate", picture, "-m", small_folder, "-n", 2, "-p", "caption en\n", "-q", "--json")
    assert len(json.loads(result.out)["warnings"]) == 1


def test_verbose_says_what_and_how_long(run: Run, picture: Path, small_folder: Path) -> None:
    plain = run("generate", picture, "-m", small_folder, "-n", 3)
    ran = run("generate", picture, "-m", small_folder, "-n", 3, "-v")
    assert ran.out == plain.out
    model, timing = ran.err.splitlines()
    precision = "bf16" if has_bf16_dot() else "f32"
    assert model == f"{small_folder}: 0.00 GB bf16, computed in {precision} by numba"
    assert re.fullmatch(r"vision \d+\.\d\d s, prompt \d+\.\d\d s, answer \d+\.\d\d s for 3 tokens", timing)


def test_a_file_name_that_is_no_text(run: Run, picture: Path, small_folder: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\xff.png")
    shutil.copy(picture, odd)
    assert answer(run, odd, "-m", small_folder, "-n", 1)["input"]["images"][0]["path"] == odd


def on_terminal(columns: int, *arguments: object) -> tuple[str, str]:
    """What a command writes to a pipe on stdout and to a terminal of that width on stderr."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, columns))
    with subprocess.Popen([*PG2REF, *map(str, arguments)], stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while piece := os.read(ours, 4096):
                shown += piece
        os.close(ours)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return out.decode(), shown.decode()


def test_progress_on_a_terminal(picture: Path, endless_folder: Path) -> None:
    """Phases with layers and bytes on stderr, erased before anything else is printed; stdout is a pipe."""
    out, shown = on_terminal(80, "generate", picture, "-m", endless_folder, "-n", 5)
    lines = shown.split("\r\x1b[K")
    phases = [line.split("  ")[0] for line in lines if line]
    assert phases[0] == "reading image"
    assert set(phases) == {"reading image", "reading prompt", "answering"}
    assert any(re.search(r"\[#{24}\] layer 3/3, \d+\.\d GB of weights$", line) for line in lines)
    assert any(re.search(r"\[#{24}\] layer 4/4, \d+\.\d GB of weights$", line) for line in lines)
    assert lines[-1] == ""
    assert "\x1b" not in out
    assert out.endswith("\n")


def test_progress_counts_the_weights_once_for_all_images(
    picture: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second image passes through weights that have been read: the count stands still, and never falls."""
    from pg2ref.api import load
    from pg2ref.cli.progress import LayerProgress, ProgressLine

    details: list[str] = []
    monkeypatch.setattr(ProgressLine, "show", lambda self, label, done, total, detail: details.append(detail))
    model = load(small_folder)
    progress = LayerProgress(ProgressLine(), model, 2)
    progress.layer_bytes = {"vision": 10**9, "text": 2 * 10**9}
    list(model.stream([picture, picture], "same?", max_new_tokens=2, tap=progress))
    read = [float(detail.split()[2]) for detail in details]
    assert read == [1, 2, 3, 3, 3, 3, 5, 7, 9, 11]
    assert [detail.split()[1] for detail in details[2:6]] == ["3/6,", "4/6,", "5/6,", "6/6,"]


def test_progress_on_a_narrow_terminal(picture: Path, small_folder: Path) -> None:
    """A line that wrapped could not be erased."""
    _, shown = on_terminal(40, "generate", picture, "-m", small_folder, "-n", 1)
    lengths = {len(line) for line in shown.split("\r\x1b[K")}
    assert max(lengths) == 39


def test_quiet_is_quiet_on_a_terminal(picture: Path, small_folder: Path) -> None:
    assert on_terminal(80, "generate", picture, "-m", small_folder, "-n", 1, "-q")[1] == ""


def test_piped_it_is_silent_and_the_text_alone(run: Run, picture: Path, small_folder: Path) -> None:
    ran = run_process("generate", picture, "-m", small_folder, "-n", 5)
    assert ran.stdout == run("generate", picture, "-m", small_folder, "-n", 5).out
    assert (ran.returncode, ran.stderr) == (0, "")


def test_an_encoding_without_the_letters(small_folder: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "koi8-r"}
    ran = run_process("tokenize", "ß", "-m", small_folder, "--raw", env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith("  '\\xdf'\n")


@contextmanager
def endless(picture: Path, folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", BinaryIO, BinaryIO]]:
    """An answer in the making, of which a byte has been read, with its stdout and stderr."""
    command = [*PG2REF, "generate", str(picture), "-m", str(folder), "-n", "8000", "--no-cache"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        yield process, process.stdout, process.stderr  # type: ignore[misc]


def test_ctrl_c(picture: Path, endless_folder: Path) -> None:
    with endless(picture, endless_folder) as (process, out, err):
        process.send_signal(signal.SIGINT)
        out.read()
        assert err.read().strip() == b"pg2ref: interrupted"
        assert process.wait(timeout=30) == 130


def test_a_reader_that_leaves(picture: Path, endless_folder: Path) -> None:
    """What `| head -c 1` does."""
    with endless(picture, endless_folder) as (process, out, err):
        out.close()
        assert err.read() == b""
        assert process.wait(timeout=30) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "pg2ref-shapes"]])
def test_a_full_disk(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run([*PG2REF, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (1, "pg2ref: cannot write the output: No space left on device\n")


def test_threads_are_set_before_numpy_is_imported(picture: Path, small_folder: Path) -> None:
    watch = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print("numpy with", os.environ.get("OPENBLAS_NUM_THREADS"), os.environ.get("OMP_NUM_THREADS"))
sys.meta_path.insert(0, Watch())
from pg2ref.cli.main import main
main(sys.argv[1:])
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ran = subprocess.run(
        [sys.executable, "-c", watch, "generate", picture, "-m", small_folder, "-n", "1", "--threads", "1"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("numpy with 1 1\n")


def test_help_imports_nothing_heavy_and_shows_examples() -> None:
    script = """
import sys
from pg2ref.cli.main import main
for arguments in (["--help"], ["generate", "--help"], ["inspect", "-h"], ["tokenize", "--help"], ["--version"]):
    try:
        main(arguments)
    except SystemExit as ended:
        print("exit", ended.code)
print("heavy:", sorted({"numpy", "numba", "PIL", "sentencepiece"} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    pages = ran.stdout.split("exit 0\n")
    group, generate, inspect, tokenize, version, heavy = pages
    assert 'pg2ref generate photo.jpg -p "caption en" -m google/paligemma2-3b-mix-224' in group
    assert "3 model not available" in group
    assert "pg2ref generate left.png right.png -m ./nlvr2" in generate
    assert "pg2ref inspect google/paligemma2-3b-mix-224 --verify" in inspect
    assert 'pg2ref tokenize "detect cat ; dog"' in tokenize
    assert re.fullmatch(r"pg2ref, version \d+\.\d+\.\d+\n", version)
    assert heavy == "heavy: []\n"


@pytest.mark.parametrize("arguments", [(), ("-h",), ("generate", "--help")])
def test_help_fits_a_terminal(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    page = ran.out + ran.err
    assert ran.code == (0 if arguments else 2)
    assert page.startswith("Usage: pg2ref")
    assert max(map(len, page.splitlines())) <= 100


def test_both_backends_answer_alike(run: Run, picture: Path, small_folder: Path) -> None:
    options = ("generate", picture, "-m", small_folder, "-n", 12)
    assert run(*options, "--backend", "numba") == run(*options, "--backend", "numpy")
