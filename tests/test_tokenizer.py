"""The tokenizer on a small vocabulary in the released layout; ids are literals, so no other library is needed."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import tokenizer_model
from hypothesis import given, settings
from hypothesis import strategies as st

from pg2ref.errors import CheckpointError, PromptError
from pg2ref.inputs.tokenizer import IncrementalDetokenizer, Tokenizer

VOCAB_SIZE_TEXT = 1200
IMAGE_ID = VOCAB_SIZE_TEXT + 1152

GOLDEN = [
    ("", []),
    ("detect cat", [545, 820]),
    ("a\n", [1093, 108]),
    (" a", [487]),
    ("a  b", [1093, 139, 1094]),
    (" " * 32, [153, 153]),  # SentencePiece alone would say 31 + 1
    (" " * 33 + "the", [153, 154, 1112, 474]),
    ("▁▁ the", [139, 475]),  # typed runs of the mark are pieces of their own
    ("\n" * 32, [138, 108]),
    ("\t", [226]),
    ("\r\0", [230, 217]),
    ("x<seg003>y", [1116, 2227, 1117]),
    ("<loc1023><seg127>", [2223, 2351]),
    ("<loc1024>", [1056, 504, 1095, 1045, 1044, 1046, 1048, 1058]),  # no such bin: plain text
    ("<bos>the<image>", [2, 1112, 474, 2352]),
    ("<mask><pad><unk><eos>", [4, 0, 3, 1]),
    ("<table>cat</b>", [169, 1095, 502, 210]),
    ("no <unused7> way", [1106, 1107, 1163, 12, 486, 1093, 1117]),
    ("2024", [1046, 1044, 1046, 1048]),
    ("Straße", [663, 1097]),
    ("кошка", [782]),
    ("日本", [447, 368, 382, 447, 373, 389]),
    ("😀\ufffd", [457, 376, 369, 345, 456, 408, 406]),
]
HIDDEN = {0, 1, 2, 3, 4, 106, 107, IMAGE_ID}

TEXTS = st.lists(
    st.sampled_from(["<loc0001>", "<seg127>", "<image>", "<bos>", "<b>", "\n\n", "  ", " the", "cat", "日"])
    | st.text(max_size=8)
).map("".join)
IDS = st.lists(st.integers(0, IMAGE_ID + 20) | st.integers(217, 472) | st.sampled_from(sorted(HIDDEN)))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    assert tokenizer_model.write_tokenizer_files(path, VOCAB_SIZE_TEXT) == IMAGE_ID
    return path


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder, IMAGE_ID)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize(("text", "ids"), GOLDEN)
def test_golden_ids(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.tokenize(text) == ids


@pytest.mark.parametrize("length", range(1, 32))
def test_runs_of_newlines_and_spaces_are_single_pieces(tokenizer: Tokenizer, length: int) -> None:
    assert tokenizer.tokenize("\n" * length) == [107 + length]
    assert tokenizer.tokenize("x" + " " * length) == [1116, 1163 if length == 1 else 137 + length]


def test_ids_by_name(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    assert (tokenizer.image_token_id, tokenizer.vocab_size) == (IMAGE_ID, IMAGE_ID + 1)
    assert [tokenizer.piece(i) for i in (2, 108, 139, 226, 2223)] == ["<bos>", "\n", "▁▁", "<0x09>", "<loc1023>"]
    assert tokenizer.piece(IMAGE_ID) == "<image>"
    assert tokenizer.piece(IMAGE_ID + 1) == f"<padding row {IMAGE_ID + 1}>"


def test_released_size_has_the_released_ids(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model.build(256_000))
    tokenizer = Tokenizer.load(tmp_path, 257_152)
    ids = [256000, 257023, 257024, 257151, 257152, 108]
    assert tokenizer.tokenize("<loc0000><loc1023><seg000><seg127><image>\n") == ids


def test_model_bytes_are_the_same_every_time() -> None:
    assert tokenizer_model.build(700) == tokenizer_model.build(700)
    with pytest.raises(ValueError, match="at least"):
        tokenizer_model.build(500)


def test_long_text(tokenizer: Tokenizer) -> None:
    text = "detect cat ; " * 20_000 + " " * 100_000
    ids = tokenizer.tokenize(text)
    assert ids[:2] == [545, 820]
    assert tokenizer.detokenize(ids) == text


@settings(deadline=None, derandomize=True)
@given(text=TEXTS)
def test_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    printed = text.replace("▁", " ")  # the two are one to the vocabulary
    for i in HIDDEN:
        printed = printed.replace(tokenizer.piece(i), "")
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == printed


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([], ""),
        ([475, 820], " the cat"),
        ([2, 545, 0, 820, 1, IMAGE_ID, IMAGE_ID + 1, 10**9, 106, 4], "detect cat"),
        ([1201, 2227, 108], "<loc0001><seg003>\n"),
        ([447, 368, 382], "日"),
        ([447, 0, 368, IMAGE_ID + 7, 382], "日"),  # what does not print does not part bytes
        ([447, 368, 475], "\ufffd\ufffd the"),
        ([217 + 0x41, 217 + 0xFF], "\ufffd\ufffd"),  # one bad byte spoils its whole run
        ([217 + 0x41, 475, 217 + 0xFF], "A the\ufffd"),
        ([217 + 0xED, 217 + 0xA0, 217 + 0x80], "\ufffd\ufffd\ufffd"),  # an encoded surrogate
    ],
)
def test_detokenize(tokenizer: Tokenizer, ids: list[int], text: str) -> None:
    assert tokenizer.detokenize(ids) == text


@settings(deadline=None, derandomize=True)
@given(ids=IDS)
def test_streamed_pieces_join_to_the_whole(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = IncrementalDetokenizer(tokenizer)
    parts = [stream.feed(token_id) for token_id in ids]
    whole = tokenizer.detokenize(ids)
    for count in range(len(parts)):
        assert whole.startswith("".join(parts[: count + 1]))
    assert "".join(parts) + stream.flush() == whole
    assert stream.flush() == ""
    assert whole == _oracle_text(tokenizer, ids)


def test_stream_holds_bytes_back_until_they_are_certain(tokenizer: Tokenizer) -> None:
    stream = IncrementalDetokenizer(tokenizer)
    assert [stream.feed(i) for i in (545, 447, 368, 382, 475)] == ["detect", "", "", "", "日 the"]
    assert stream.feed(457) == ""
    assert stream.flush() == "\ufffd"


def _oracle_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Detokenizing said once more: as groups of bytes and of pieces."""
    groups: list[bytes | str] = []
    for token_id in ids:
        if token_id in HIDDEN or token_id > IMAGE_ID:
            continue
        if 217 <= token_id <= 472:
            byte = bytes([token_id - 217])
            groups[-1:] = [groups[-1] + byte] if groups and isinstance(groups[-1], bytes) else [*groups[-1:], byte]
        else:
            groups.append(tokenizer.piece(token_id).replace("▁", " "))
    return "".join(_oracle_bytes(group) if isinstance(group, bytes) else group for group in groups)


def _oracle_bytes(group: bytes) -> str:
    return group.decode("utf-8") if group.decode("utf-8", "replace").encode() == group else "\ufffd" * len(group)


@pytest.mark.parametrize("text", ["\ud83d", "cat\udc00", "<image>\udfff\n"])
def test_lone_surrogate(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(PromptError, match="surrogate"):
        tokenizer.tokenize(text)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model or tokenizer\.json") as caught:
        Tokenizer.load(tmp_path, IMAGE_ID)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "pointer", "zeros", "list"])
def test_damaged_file(copy: Path, name: str, damage: str) -> None:
    whole = (copy / name).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\nsize 4264023\n"
    contents = {"empty": b"", "cut": whole[: len(whole) // 2], "pointer": pointer, "zeros": bytes(99), "list": b"[1]"}
    (copy / name).write_bytes(contents[damage])
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(copy, IMAGE_ID)
    is_empty_model = name == "tokenizer.model" and damage == "empty"
    assert str(copy if is_empty_model else copy / name) in str(caught.value)


@pytest.mark.parametrize(
    ("image_token_id", "complaint"),
    [(1201, "'<loc0001>'"), (IMAGE_ID + 1, f"is id {IMAGE_ID}"), (-1, "0 or more")],
)
def test_image_id_that_contradicts_the_files(copy: Path, image_token_id: int, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        Tokenizer.load(copy, image_token_id)
    for name in ("added_tokens.json", "tokenizer_config.json"):
        (copy / name).unlink()
    if image_token_id == IMAGE_ID + 1:  # nothing but config.json names the image token now
        assert Tokenizer.load(copy, image_token_id).tokenize("<image>") == [IMAGE_ID + 1]
    else:
        with pytest.raises(CheckpointError, match=complaint):
            Tokenizer.load(copy, image_token_id)


def test_tokenizer_without_locations(copy: Path) -> None:
    schema = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    proto = schema.ModelProto.FromString((copy / "tokenizer.model").read_bytes())
    del proto.pieces[VOCAB_SIZE_TEXT:]
    (copy / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError, match=r"no <loc0000>, <loc1023>, <seg000>, <seg127>"):
        Tokenizer.load(copy, IMAGE_ID)


def test_added_tokens_of_a_fine_tune(copy: Path) -> None:
    (copy / "added_tokens.json").write_text(json.dumps({"<image>": IMAGE_ID, "<ship>": IMAGE_ID + 3}))
    tokenizer = Tokenizer.load(copy, IMAGE_ID)
    assert tokenizer.tokenize("a<ship>a") == [1093, IMAGE_ID + 3, 1093]
    assert tokenizer.detokenize([1093, IMAGE_ID + 3, IMAGE_ID + 2]) == "a<ship>"
    assert tokenizer.vocab_size == IMAGE_ID + 4


def test_tokenizer_json_alone_says_the_same(copy: Path) -> None:
    pytest.importorskip("tokenizers")
    (copy / "tokenizer.model").unlink()
    tokenizer = Tokenizer.load(copy, IMAGE_ID)
    for text, ids in GOLDEN:
        assert tokenizer.tokenize(text) == ids
    assert tokenizer.detokenize([2, 545, IMAGE_ID, 820, 447, 368]) == "detect cat\ufffd\ufffd"
    (copy / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(copy, IMAGE_ID)


def test_tokenizer_json_without_the_library(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "tokenizer.model").unlink()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(CheckpointError, match=r"pip install 'pg2ref\[tokenizers\]'"):
        Tokenizer.load(copy, IMAGE_ID)
