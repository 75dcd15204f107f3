"""A byte-level BPE tokenizer: lossless text <-> ids, and the number of bytes of each token.

A wrapper of the `tokenizers` library, with its JSON file format.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from cli.atomic import read_json, to_json, write_atomically
from cli.errors import UserError

ABOUT = "tokenizer_about.json"  # next to tokenizer.json: data without a field in that file


class ChatTemplate(NamedTuple):
    """The Jinja chat template of a model, and the special tokens that it can refer to."""

    template: str
    bos_token: str = ""
    eos_token: str = ""


class Tokenizer:
    """Wraps a `tokenizers.Tokenizer` whose model is byte-level BPE.

    Text never encodes to special tokens: the characters `<|endoftext|>` in a document are encoded
    as ordinary characters.
    """

    def __init__(self, backend: tokenizers.Tokenizer, separator: str, chat: ChatTemplate | None = None):
        """`separator` is the special token before every document. Raises UserError if unknown."""
        self.chat = chat
        backend.encode_special_tokens = True
        self.backend = backend
        self.special_ids = sorted(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        separator_id = backend.token_to_id(separator)
        if separator_id is None:
            raise UserError(
                f"tokenizer: the separator {separator!r} is not in the vocabulary; add it as a special token"
            )
        self.separator_id: int = separator_id
        self.hash = hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Load a `tokenizer.json` and the file that `save` writes next to it.

        Without that file, the first special token is the separator. Raises UserError.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such tokenizer file; check the path") from None
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"{path}: not a tokenizer: {error}") from None
        added = backend.get_added_tokens_decoder()
        special = [added[i].content for i in sorted(added) if added[i].special]
        if not special:
            raise UserError(f"{path}: has no special token to separate documents; add one")
        about_path = Path(path).with_name(ABOUT)
        about = read_json(about_path) if about_path.exists() else {}
        try:
            chat, separator = about.get("chat"), about.get("separator", special[0])
            template = ChatTemplate(**chat) if chat else None
            if backend.token_to_id(separator) is None:  # the file is of another tokenizer; the hash check finds that
                separator = special[0]
        except (AttributeError, TypeError):
            raise UserError(f"{about_path}: is damaged; restore it, or delete it") from None
        return cls(backend, separator, template)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, and the separator and chat template next to it."""
        write_atomically(folder / "tokenizer.json", self.to_json())
        chat = self.chat._asdict() if self.chat else None
        about = {"separator": self.backend.id_to_token(self.separator_id), "chat": chat}
        write_atomically(folder / ABOUT, to_json(about, 1) + "\n")

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`; `hash` is its SHA-256."""
        return self.backend.to_str(pretty=True)

    @property
    def vocab_size(self) -> int:
        """Number of ids, including special tokens."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Encode `text` to ids, without added special tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_with_special(self, text: str) -> list[int]:
        """Encode `text` to ids; a special token in the text becomes its id."""
        self.backend.encode_special_tokens = False
        try:
            return self.encode(text)
        finally:
            self.backend.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text to ids, on all cores."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode `ids` to text without special tokens; invalid UTF-8 bytes become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def token_bytes(self) -> np.ndarray:
        """Return the number of text bytes of each token, (V,) int64; 0 for special tokens."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, i in self.backend.get_vocab().items():
            lengths[i] = len(token)  # byte-level BPE represents each byte as one character
        lengths[self.special_ids] = 0
        return lengths
