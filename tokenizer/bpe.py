"""A byte-level BPE tokenizer: text <-> ids, lossless, with the bytes that each token stands for.

The work is done by the `tokenizers` library; the file format is its JSON.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from cli.atomic import read_json, to_json, write_atomically
from cli.errors import UserError

ABOUT = "tokenizer_about.json"  # beside tokenizer.json: what that file has no place for


class ChatTemplate(NamedTuple):
    """How a model writes conversations: Jinja, and the special tokens that it may name."""

    template: str
    bos_token: str = ""
    eos_token: str = ""


class Tokenizer:
    """Wraps a `tokenizers.Tokenizer` whose model is byte-level BPE.

    Special tokens never come out of text: a document that contains the characters
    `<|endoftext|>` is encoded as those characters.
    """

    def __init__(self, backend: tokenizers.Tokenizer, separator: str, chat: ChatTemplate | None = None):
        """`separator` is the special token that stands before and between documents."""
        self.chat = chat
        backend.encode_special_tokens = True
        self.backend = backend
        self.special_ids = sorted(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        separator_id = backend.token_to_id(separator)
        if separator_id is None:
            raise UserError(f"tokenizer: the separator {separator!r} is not in the vocabulary")
        self.separator_id: int = separator_id
        self.hash = hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json` and what `save` wrote beside it; alone, its first special token

        is the separator. Raises UserError.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such tokenizer") from None
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"{path}: not a tokenizer: {error}") from None
        added = backend.get_added_tokens_decoder()
        special = [added[i].content for i in sorted(added) if added[i].special]
        if not special:
            raise UserError(f"{path}: has no special token to separate documents with")
        beside = Path(path).with_name(ABOUT)
        about = read_json(beside) if beside.exists() else {}
        try:
            chat, separator = about.get("chat"), about.get("separator", special[0])
            template = ChatTemplate(**chat) if chat else None
            if backend.token_to_id(separator) is None:  # of another tokenizer: hashes will tell
                separator = special[0]
        except (AttributeError, TypeError):
            raise UserError(f"{beside}: is damaged; restore it, or delete it") from None
        return cls(backend, separator, template)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, and the separator and chat template beside it."""
        write_atomically(folder / "tokenizer.json", self.to_json())
        chat = self.chat._asdict() if self.chat else None
        about = {"separator": self.backend.id_to_token(self.separator_id), "chat": chat}
        write_atomically(folder / ABOUT, to_json(about, 1) + "\n")

    def to_json(self) -> str:
        """The file format; `hash` is the SHA-256 of exactly this text."""
        return self.backend.to_str(pretty=True)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_with_special(self, text: str) -> list[int]:
        """Ids of `text` in which special tokens are what they are written as."""
        self.backend.encode_special_tokens = False
        try:
            return self.encode(text)
        finally:
            self.backend.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; runs on all cores."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def token_bytes(self) -> np.ndarray:
        """(V,) int64: how many bytes of text each token stands for; special tokens stand for 0."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, i in self.backend.get_vocab().items():
            lengths[i] = len(token)  # byte-level BPE writes every byte as one character
        lengths[self.special_ids] = 0
        return lengths
