"""`pg2ref tokenize`: the ids that the model reads, a run of equal ones on one line."""

import json
from pathlib import Path

from cli_runner import Run

from pg2ref.inputs.tokenizer import Tokenizer

IMAGE, BOS, NEWLINE = 2352, 2, 108


def ids(run: Run, *arguments: object) -> list[int]:
    ran = run("tokenize", *arguments, "--json")
    assert (ran.code, ran.err) == (0, "")
    parsed = json.loads(ran.out)
    assert set(parsed) == {"schema", "ids", "pieces"}
    assert parsed["schema"] == "pg2ref/tokens/1"
    assert len(parsed["pieces"]) == len(parsed["ids"])
    found: list[int] = parsed["ids"]
    return found


def test_page(run: Run, small_folder: Path) -> None:
    ran = run("tokenize", "detect cat", "-m", small_folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == (
        "    2352  '<image>'  x 16\n       2  '<bos>'\n     545  'detect'\n     820  '▁cat'\n     108  '\\n'\n"
    )


def test_layout(run: Run, small_folder: Path) -> None:
    text = Tokenizer.load(small_folder, IMAGE).tokenize("detect cat ; dog")
    assert len(text) > 3
    assert ids(run, "detect cat ; dog", "-m", small_folder) == [IMAGE] * 16 + [BOS, *text, NEWLINE]


def test_raw_is_the_text_alone(run: Run, small_folder: Path) -> None:
    assert ids(run, "detect cat", "-m", small_folder, "--raw") == [545, 820]
    assert ids(run, "<loc0512>", "-m", small_folder, "--raw") == [1200 + 512]
    assert ids(run, "", "-m", small_folder, "--raw") == []


def test_two_images(run: Run, small_folder: Path) -> None:
    assert ids(run, "cat", "-m", small_folder, "--images", 2)[:33] == [IMAGE] * 32 + [BOS]
    marked = ids(run, "<image>cat<image>dog", "-m", small_folder, "--images", 2)
    assert marked[:16] == [IMAGE] * 16
    assert marked[16] not in (IMAGE, BOS)
    assert marked[marked.index(BOS) - 16 : marked.index(BOS)] == [IMAGE] * 16
    ran = run("tokenize", "<image>cat", "-m", small_folder, "--images", 2)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (4, "", 1)


def test_it_is_what_generate_reads(run: Run, small_folder: Path, tmp_path: Path) -> None:
    from cli_runner import write_picture

    picture = write_picture(tmp_path / "picture.png")
    generated = run("generate", picture, "-m", small_folder, "-n", 1, "-p", "où est\nle chat ?", "--json")
    assert ids(run, "où est\nle chat ?", "-m", small_folder) == json.loads(generated.out)["input"]["ids"]


def test_weights_are_not_needed(run: Run, small_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.model", "added_tokens.json"):
        (tmp_path / name).write_bytes((small_folder / name).read_bytes())
    assert ids(run, "cat", "-m", tmp_path) == ids(run, "cat", "-m", small_folder)
