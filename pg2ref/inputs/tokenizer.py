"""Step 3 of 9, first half: text to token ids and back, with the tokenizer files of a checkpoint.

The tokenizer is Gemma's: a SentencePiece byte pair encoding that strips and lower-cases nothing, splits digits, and
spells what it does not know as UTF-8 bytes; PaliGemma adds `<locNNNN>`, `<segNNN>` and `<image>`. Ids and text equal
those of Transformers 5.23 (models/gemma/tokenization_gemma.py, as PaliGemmaProcessor sets it up).
Next: prompt.py, which lays out a prompt with it.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from pg2ref.errors import PromptError
from pg2ref.inputs.tokenizer_files import SPACE, Vocabulary, read_vocabulary

LOCATION_OR_SEGMENT = r"<loc(?:0\d{3}|10[01]\d|102[0-3])>|<seg(?:0\d{2}|1[01]\d|12[0-7])>"
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def check_unicode(text: str) -> None:
    """Raises PromptError for a text that is not Unicode: a lone surrogate, as a byte that is not UTF-8 becomes one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the text holds U+{ord(text[error.start]):04X} at character {error.start}: expected Unicode, got half of "
            "a surrogate pair or a byte that was not UTF-8; give the text as UTF-8"
        ) from None


class Tokenizer:
    """Token ids of texts and texts of token ids; make one with `load`."""

    def __init__(self, vocabulary: Vocabulary, image_token_id: int) -> None:
        self._encode, self._pieces, added, self._special = vocabulary
        self._id_of = {piece: i for i, piece in enumerate(self._pieces) if piece is not None}
        longest_first = sorted(added, key=len, reverse=True)
        alternatives = [LOCATION_OR_SEGMENT, *map(re.escape, longest_first)]
        self._added_token = re.compile("|".join(alternatives), re.ASCII)
        self.image_token_id = image_token_id
        self.pad_id, self.eos_id, self.bos_id = (self._id_of[name] for name in ("<pad>", "<eos>", "<bos>"))

    @classmethod
    def load(cls, folder: Path, image_token_id: int) -> "Tokenizer":
        """Read tokenizer.model, else tokenizer.json, and the lists of added tokens beside it.

        Raises CheckpointError when there is neither file, when one is damaged, when the files contradict each other
        or `image_token_id` (config.json), and when the pieces that PaliGemma needs are not all there.
        """
        return cls(read_vocabulary(folder, image_token_id), image_token_id)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id that has a piece; the embedding table may have more rows (padding)."""
        return len(self._pieces)

    def tokenize(self, text: str) -> list[int]:
        """The ids of `text`, with nothing put before or after it.

        Added tokens (`<image>`, `<bos>`, `<loc0001>` ...) are found anywhere in the text, typed by a user or not.
        Raises PromptError for a text that is not Unicode (a lone surrogate).
        """
        check_unicode(text)
        ids: list[int] = []
        done = 0
        for match in self._added_token.finditer(text):
            ids += self._encode(text[done : match.start()])
            ids.append(self._id_of[match.group()])
            done = match.end()
        return ids + self._encode(text[done:])

    def detokenize(self, ids: Iterable[int]) -> str:
        """The text of `ids`: special tokens and padding rows print as nothing, nothing is stripped.

        Neighbouring byte pieces are read as UTF-8 together; if they are not valid, each of them becomes U+FFFD.
        """
        stream = IncrementalDetokenizer(self)
        return "".join([stream.feed(token_id) for token_id in ids]) + stream.flush()

    def piece(self, token_id: int) -> str:
        """The piece as the vocabulary spells it, for display; ids without one are named as padding rows."""
        text = self._pieces[token_id] if 0 <= token_id < len(self._pieces) else None
        return f"<padding row {token_id}>" if text is None else text

    def printed_piece(self, token_id: int) -> str | None:
        """The piece if it takes part in a text; None for special tokens and for ids without a piece."""
        text = self._pieces[token_id] if 0 <= token_id < len(self._pieces) else None
        return None if text in self._special else text


class IncrementalDetokenizer:
    """Detokenizes ids one at a time: what `feed` and a last `flush` return joins to `Tokenizer.detokenize`.

    A run of byte pieces is held back until it ends, because one invalid byte later turns all of it into U+FFFD
    (the ByteFallback decoder of the tokenizers library, which Transformers uses).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held_bytes = bytearray()

    def feed(self, token_id: int) -> str:
        """Take the next id and return the text that is certain now, often the piece, sometimes nothing."""
        piece = self._tokenizer.printed_piece(int(token_id))
        if piece is None:
            return ""
        if byte := BYTE_PIECE.fullmatch(piece):
            self._held_bytes.append(int(byte[1], 16))
            return ""
        return self.flush() + piece.replace(SPACE, " ")

    def flush(self) -> str:
        """The text of the bytes held back; call it after the last id."""
        held, self._held_bytes = self._held_bytes, bytearray()
        try:
            return held.decode("utf-8")
        except UnicodeDecodeError:
            return "\ufffd" * len(held)
