"""Build small tokenizers in the layout of the released Gemma / PaliGemma tokenizer, for tests and small models.

Below id 473 the kinds of pieces lie as in the release; behind them come the pieces of a small byte pair encoding
that is trained here on sentences made here, fillers up to `vocab_size_text`, then 1024 `<locNNNN>` and 128
`<segNNN>`. `<image>` is the next id and no SentencePiece piece: the JSON files add it. Nothing is random: the same
arguments give the same tokenizer, whatever version of sentencepiece is installed.

Transformers 5.23 builds its tokenizer from tokenizer.json and tokenizer_config.json; sentencepiece reads
tokenizer.model. Both are written from one list of pieces. Needs protobuf (the `test` extra).
"""

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # sentencepiece_model.proto, Type
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
FILLER_SCORE = -1e6

TABLE_TAGS = "table caption thead tbody tfoot tr th td".split()
BLOCK_TAGS = "h1 h2 h3 h4 h5 h6 blockquote".split()
INLINE_TAGS = "strong em b i u s sub sup code".split()

NOUNS = """cat dog bird horse cow sheep zebra giraffe elephant bear car truck bus train boat bicycle person man woman
child tree flower house street table chair bottle cup plate fork knife spoon bowl apple orange banana circle square
triangle star ring cross shape colour picture photo image sky grass water road window door light left right top
chat chien oiseau cheval maison voiture fleur arbre garçon forêt château Katze Hund Vogel Häuser Straße Mädchen Bäume
gato perro pájaro caballo casa coche niño árbol montaña kat hond vogel fiets jongen hus hund fågel träd blåbær gutt
кошка собака дом дерево машина γάτα σκύλος σπίτι δέντρο""".split()
COLOURS = "red green blue yellow black white grey purple rot grün blau rouge vert bleu rojo verde azul".split()
TEMPLATES = (
    "detect {colour} {noun}",
    "segment {noun} ; {colour} {noun}",
    "answer en what colour is the {noun}? {colour}.",
    "answer en how many {noun}s are there in the picture?",
    "question en is the {noun} to the left of the {colour} one?",
    "A {colour} {noun} is on the right, and this is a test.",
    "caption en describe de fr es ocr the {noun}'s place with an (other) {noun}!",
)


class Piece(NamedTuple):
    """One row of the vocabulary, as SentencePiece stores it."""

    text: str
    score: float
    kind: int


def build(vocab_size_text: int, sentences: Sequence[str] | None = None) -> bytes:
    """A serialised SentencePiece `ModelProto` with `vocab_size_text` + 1152 pieces.

    `vocab_size_text` is the id of `<loc0000>`: 256000 in the released checkpoints, 1200 is enough for tests.
    `sentences` take the place of the ones made here.
    """
    schema: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    proto = schema.ModelProto()
    for piece in _pieces(vocab_size_text, sentences):
        proto.pieces.add(piece=piece.text, score=piece.score, type=piece.kind)
    trainer = proto.trainer_spec
    trainer.model_type = schema.TrainerSpec.BPE
    trainer.vocab_size = len(proto.pieces)
    trainer.byte_fallback = trainer.split_digits = trainer.allow_whitespace_only_pieces = True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece, trainer.unk_piece = SPECIAL[:4]
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return bytes(proto.SerializeToString(deterministic=True))


def write_tokenizer_files(folder: Path, vocab_size_text: int, sentences: Sequence[str] | None = None) -> int:
    """Write the five tokenizer files of a released checkpoint into `folder`; returns the id of `<image>`."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = _pieces(vocab_size_text, sentences)
    image_token_id = len(pieces)
    added = {i: _added_token(p.text, p.text in SPECIAL) for i, p in enumerate(pieces[:217])}
    added[image_token_id] = _added_token("<image>", special=True)
    names = {f"{name.strip('<>')}_token": name for name in SPECIAL[:5]}
    (folder / "tokenizer.model").write_bytes(build(vocab_size_text, sentences))
    _write_json(folder / "added_tokens.json", {"<image>": image_token_id})
    _write_json(folder / "special_tokens_map.json", {"additional_special_tokens": ["<image>"], **names})
    _write_json(folder / "tokenizer.json", _fast_tokenizer(pieces, added))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {str(i): token for i, token in added.items()},
            "additional_special_tokens": ["<image>"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,
            "processor_class": "PaliGemmaProcessor",
            "tokenizer_class": "GemmaTokenizer",
            **names,
        },
    )
    return image_token_id


def _fast_tokenizer(pieces: list[Piece], added: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The same tokenizer as tokenizer.json: what Transformers' GemmaTokenizer takes its pieces and merges from."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **token} for i, token in added.items()],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: i for i, piece in enumerate(pieces)},
            "merges": list(_merges(pieces)),
        },
    }


def _merges(pieces: list[Piece]) -> Iterator[list[str]]:
    """Every pair of pieces that joins to a piece, in the order of the joined ids; shorter left halves first."""
    known = {piece.text for piece in pieces}
    for piece in pieces:
        if piece.kind in (NORMAL, USER_DEFINED) and not piece.text.startswith("<"):
            halves = ((piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text)))
            yield from ([left, right] for left, right in halves if left in known and right in known)


def _pieces(vocab_size_text: int, sentences: Sequence[str] | None) -> list[Piece]:
    head = _fixed_pieces()
    trained = _train(vocab_size_text - len(head), _corpus_words(sentences or _test_sentences()))
    text = head + [Piece(piece, -float(rank), NORMAL) for rank, piece in enumerate(trained)]
    fillers = range(vocab_size_text - len(text))
    text += [Piece(f"<unused_{i:06}>", FILLER_SCORE, UNUSED) for i in fillers]
    locations = [Piece(f"<loc{i:04}>", 0.0, USER_DEFINED) for i in range(1024)]
    return text + locations + [Piece(f"<seg{i:03}>", 0.0, USER_DEFINED) for i in range(128)]


def _fixed_pieces() -> list[Piece]:
    """Ids 0 to 472: control pieces, placeholders, runs of newlines and of spaces, HTML tags, the 256 bytes."""
    control = [Piece(text, 0.0, CONTROL) for text in SPECIAL[:3]] + [Piece("<unk>", 0.0, UNKNOWN)]
    user = ["<mask>", *(f"<unused{i}>" for i in range(101)), "<start_of_turn>", "<end_of_turn>"]
    user += ["\n" * length for length in range(1, 32)] + ["▁" * length for length in range(2, 32)]
    for tags in (TABLE_TAGS, BLOCK_TAGS, INLINE_TAGS):
        user += [f"<{tag}>" for tag in tags] + [f"</{tag}>" for tag in tags]
    bytes_ = [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    return control + [Piece(text, 0.0, USER_DEFINED) for text in user] + bytes_


def _train(room: int, counts: Counter[str]) -> list[str]:
    """Byte pair encoding of words: the most frequent pair becomes a piece, ties by text; letters come last."""
    letters = sorted({chr(code) for code in range(0x21, 0x7F)} | {letter for word in counts for letter in word})
    if room < len(letters):
        raise ValueError(f"vocab_size_text must be at least {473 + len(letters)} to hold the single letters")
    words = {word: list(word) for word in counts}
    merged: list[str] = []
    while len(merged) < room - len(letters):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if left + right not in merged:
            merged.append(left + right)
        words = {word: _join(parts, left, right) for word, parts in words.items()}
    return merged + letters


def _join(parts: list[str], left: str, right: str) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and joined[-1] == left and part == right:
            joined[-1] = left + right
        else:
            joined.append(part)
    return joined


def _test_sentences() -> list[str]:
    return [
        template.format(noun=noun, colour=COLOURS[(i + j) % len(COLOURS)])
        for i, noun in enumerate(NOUNS)
        for j, template in enumerate(TEMPLATES)
    ]


def _corpus_words(sentences: Sequence[str]) -> Counter[str]:
    """Words with the space before them; digits and marks stand alone, as in a split by script and number."""
    return Counter(word for line in sentences for word in re.findall(r"▁?[^\W\d_]+|▁|[^▁]", line.replace(" ", "▁")))


def _added_token(content: str, special: bool) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": content, **flags, "special": special}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
