"""The tokenizer files of a checkpoint, read and checked against each other, for tokenizer.py.

tokenizer.model (SentencePiece) is read first: it is what the model was trained with. tokenizer.json says the same
for the tokenizers library. added_tokens.json and tokenizer_config.json name the pieces that are matched as a whole
inside a text, and those that never print.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pg2ref.errors import CheckpointError

REQUIRED = ("<pad>", "<eos>", "<bos>", "<loc0000>", "<loc1023>", "<seg000>", "<seg127>")
NAMED_SPECIAL = {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<image>"}  # GemmaTokenizer's, and the processor's
LARGEST_ID = 1 << 24
SPACE = "▁"  # how pieces spell a space

Encode = Callable[[str], list[int]]
NAMES = ("tokenizer.model", "tokenizer.json", "paligemma_tokenizer.model")  # the last as big_vision calls it


class Vocabulary(NamedTuple):
    """What the files say about the tokenizer."""

    encode: Encode  # ids of a text that holds no added token
    pieces: list[str | None]  # by id
    added: set[str]  # pieces matched as a whole inside a text
    special: set[str]  # pieces that never print


def read_vocabulary(folder: Path, image_token_id: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint folder, or the file it is; CheckpointError as `Tokenizer.load` says."""
    path = folder if folder.is_file() else _choose(folder)
    folder = path.parent
    vocabulary = _read_tokenizer_json(path) if path.suffix == ".json" else _read_sentencepiece(path)
    listed = [*_read_added_tokens(folder).items(), ("<image>", (image_token_id, True))]
    for text, (token_id, is_special) in listed:
        _place(vocabulary.pieces, text, token_id)
        vocabulary.added.add(text)
        if is_special:
            vocabulary.special.add(text)
    vocabulary.special.update(NAMED_SPECIAL)
    vocabulary.added.update({text for text in NAMED_SPECIAL if text in vocabulary.pieces})
    if missing := [text for text in REQUIRED if text not in vocabulary.pieces]:
        raise CheckpointError(
            f"the tokenizer in {folder} has no {', '.join(missing)}: expected the tokenizer of a PaliGemma "
            "checkpoint (Gemma's own lacks <loc> and <seg>); copy the files of the checkpoint again"
        )
    return vocabulary


def _choose(folder: Path) -> Path:
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"no tokenizer in {folder}: expected tokenizer.model or tokenizer.json; "
        "copy one there from the checkpoint it belongs to"
    )


def _place(pieces: list[str | None], text: str, token_id: int) -> None:
    """Give `text` the row `token_id`; CheckpointError when either is taken."""
    if not 0 <= token_id < LARGEST_ID:
        raise CheckpointError(f"the id of {text} is {token_id}: expected 0 or more, and less than {LARGEST_ID}")
    there = pieces[token_id] if token_id < len(pieces) else None
    if there == text:
        return
    if there is not None or text in pieces:
        found = f"id {token_id} is {there!r}" if there is not None else f"{text} is id {pieces.index(text)}"
        raise CheckpointError(
            f"the files give {text} the id {token_id}, but in the tokenizer {found}: config.json and the tokenizer "
            "files do not belong together; copy all of them again from one checkpoint"
        )
    pieces.extend([None] * (token_id + 1 - len(pieces)))
    pieces[token_id] = text


def _read_sentencepiece(path: Path) -> Vocabulary:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
        ids = list(range(processor.GetPieceSize()))
        pieces: list[str | None] = list(processor.IdToPiece(ids))
    except (OSError, RuntimeError, ValueError) as error:
        raise _damaged(path, "a SentencePiece model", error) from None
    special = {
        piece for piece, is_control in zip(pieces, processor.IsControl(ids), strict=True) if is_control and piece
    }
    space_ids = [processor.PieceToId(SPACE * length) for length in range(1, 65)]
    encode = _join_spaces_by_rank(processor.EncodeAsIds, space_ids, unknown_id=processor.unk_id())
    return Vocabulary(encode, pieces, set(special), special)


def _join_spaces_by_rank(encode: Encode, space_ids: list[int], *, unknown_id: int) -> Encode:
    """`encode`, but runs of spaces longer than the longest piece of spaces (31) are joined as Transformers does.

    SentencePiece takes the longest piece from the left: 31 and 1 for a run of 32. The byte pair encoding of the
    tokenizers library joins pairs in the order of their ids: 16 and 16. Up to 31 spaces both give one piece.
    """
    longest = space_ids.index(unknown_id) if unknown_id in space_ids else len(space_ids)
    if longest <= 1:
        return encode
    long_run = re.compile(f"([ {SPACE}]{{{longest + 1},}})")

    def encode_both(text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(long_run.split(text)):  # odd parts are the runs
            ids += [space_ids[n - 1] for n in _joined_lengths(len(part), longest)] if i % 2 else encode(part)
        return ids

    return encode_both


def _joined_lengths(length: int, longest: int) -> list[int]:
    """The lengths of the pieces that a run of `length` spaces ends as: shorter sums first, leftmost pair first."""
    lengths = [1] * length
    for total in range(2, longest + 1):
        for left in range(1, total):
            if {left, total - left} <= set(lengths):
                lengths = _join_pairs(lengths, left, total - left)
    return lengths


def _join_pairs(lengths: list[int], left: int, right: int) -> list[int]:
    joined: list[int] = []
    at = 0
    while at < len(lengths):
        is_pair = lengths[at : at + 2] == [left, right]
        joined.append(left + right if is_pair else lengths[at])
        at += 2 if is_pair else 1
    return joined


def _read_tokenizer_json(path: Path) -> Vocabulary:
    try:
        import tokenizers
    except ImportError:
        raise CheckpointError(
            f"{path.parent} has tokenizer.json but no tokenizer.model: reading it needs the tokenizers library; "
            "pip install 'pg2ref[tokenizers]', or copy tokenizer.model there"
        ) from None
    _read_json_object(path)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise _damaged(path, "a tokenizer of the tokenizers library", error) from None
    backend.no_truncation()
    backend.no_padding()
    ids = backend.get_vocab(with_added_tokens=True).values()
    pieces = [backend.id_to_token(i) for i in range(max(ids, default=-1) + 1)]
    listed = backend.get_added_tokens_decoder().values()
    special = {token.content for token in listed if token.special}
    added = {token.content for token in listed}
    return Vocabulary(lambda text: list(backend.encode(text, add_special_tokens=False).ids), pieces, added, special)


def _read_added_tokens(folder: Path) -> dict[str, tuple[int, bool]]:
    """Text -> (id, is special) from added_tokens.json and tokenizer_config.json, as far as they exist."""
    added: dict[str, tuple[int, bool]] = {}
    plain, config = folder / "added_tokens.json", folder / "tokenizer_config.json"
    try:
        if plain.is_file():
            added.update({str(text): (int(i), False) for text, i in _read_json_object(plain).items()})
        if config.is_file():
            entries = _read_json_object(config).get("added_tokens_decoder", {})
            added.update({entry["content"]: (int(i), bool(entry["special"])) for i, entry in entries.items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(config if added else plain, "a list of added tokens", error) from None
    return added


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, "JSON", error) from None
    if not isinstance(content, dict):
        raise _damaged(path, "a JSON object", TypeError(f"it holds a {type(content).__name__}"))
    return content


def _damaged(path: Path, expected: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{path} is not {expected} ({reason}); copy it again from the checkpoint")
