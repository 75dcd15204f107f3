"""Clean documents and compute their MinHash signatures, piece by piece: what several cores do at once.

A piece is a run of documents that fits easily in memory. Its files, in the work folder of a corpus:

    00042.jsonl        the cleaned documents, one {"id", "text", "group"} per line
    00042.signatures   uint32 (documents, 96), their MinHash signatures (Broder 1997)
    00042.npz          arrays with one row per document (`Piece`), counts, and checksums of the others
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rensa import RMinHash

from data.documents import Document

PERMUTATIONS, SHINGLE_WORDS = 96, 5
PIECE_CHARS, PIECE_DOCUMENTS = 1 << 22, 10_000  # size of a piece: the first limit that it reaches
# Removes BOM, DEL and the C0/C1 controls except tab and line feed; U+FFFD and lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_INVALID = re.compile("[\ufffd\ud800-\udfff]")
# Scripts without spaces between words: each character counts as a word.
_UNSPACED = re.compile("([\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def clean(text: str, changed: Counter | None = None) -> str:
    """Normalise `text` to NFC and Unix line ends; remove control characters and invalid UTF-8.

    Strips leading newlines and trailing whitespace of the whole text. `changed` counts the changed
    documents per reason.
    """
    changed = Counter() if changed is None else changed
    cleaned = text.replace("\r\n", "\n").replace("\r", "\n")
    for reason, pattern in (("invalid_utf8", _INVALID), ("control_characters", _CONTROL)):
        cleaned, count = pattern.subn("", cleaned)
        changed[reason] += bool(count)
    if not unicodedata.is_normalized("NFC", cleaned):
        cleaned = unicodedata.normalize("NFC", cleaned)
        changed["not_nfc"] += 1
    return cleaned.strip("\n").rstrip()


def shingles(text: str) -> list[str]:
    """All runs of five words of `text`: what near-duplicate removal compares."""
    words = (text if text.isascii() else _UNSPACED.sub(r" \1 ", text)).split()
    runs = map(" ".join, zip(*(words[i:] for i in range(SHINGLE_WORDS)), strict=False))
    return list(runs) or [" ".join(words)]


def sign(texts: list[str]) -> np.ndarray:
    """uint32 (texts, 96): their MinHash signatures."""
    signatures = np.empty((len(texts), PERMUTATIONS), np.uint32)
    for start in range(0, len(texts), 256):  # the shingles of more would not fit in the processor's cache
        tokens = [shingles(text) for text in texts[start : start + 256]]
        signatures[start : start + len(tokens)] = RMinHash.digests_from_token_sets(tokens, PERMUTATIONS, 0)
    return signatures


def cut_pieces(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in runs of about four million characters; the same runs in every pass over a corpus."""
    piece: list[Document] = []
    characters = 0
    for document in documents:
        piece.append(document)
        characters += len(document.text)
        if characters >= PIECE_CHARS or len(piece) >= PIECE_DOCUMENTS:
            yield piece
            piece, characters = [], 0
    if piece:
        yield piece


@dataclass(frozen=True)
class Piece:
    """What is known of the documents of a piece without reading their text."""

    digests: np.ndarray
    """uint64 (documents, 2), of the text: exact duplicates have equal ones."""
    group_keys: np.ndarray
    """uint64 (documents,): a random number per group, from `split_seed`."""
    order_keys: np.ndarray
    """uint64 (documents,): a random number per sequence, from `split_seed`."""
    characters: np.ndarray
    """int64 (documents,)."""
    bytes: np.ndarray
    """int64 (documents,), of the text in UTF-8."""
    sources: np.ndarray
    """int64 (documents,), the number of the corpus in a mixture."""
    counts: dict[str, int]
    """Documents read and dropped."""
    changed: dict[str, int]
    """Documents that cleaning changed, per reason."""
    checksums: list[str]
    """Of the other two files."""

    def __len__(self) -> int:
        """Number of documents kept."""
        return len(self.characters)


def clean_piece(documents: list[Document], path: Path, min_chars: int, by_document: bool, split_seed: int) -> Path:
    """Clean `documents` and write the files of a piece, `path` plus a suffix; returns `path`.

    Documents of less than `min_chars` characters are dropped. `by_document`: each is its own group.
    """
    counts, changed = Counter(documents_read=len(documents)), Counter[str]()
    lines, compared, digests, keys, sizes = [], [], [], [], []
    for document in documents:
        counts["characters_read"] += len(document.text)
        text = clean(document.text, changed)
        if len(text) < min_chars:
            counts["dropped_too_short"] += 1
            continue
        group = "" if by_document else document.group
        group = group or document.id
        encoded = text.encode()
        lines.append(json.dumps({"id": document.id, "text": text, "group": group}) + "\n")
        compared.append(document.dedup_text or text)
        digests.append(hashlib.blake2b(encoded, digest_size=16).digest())
        drawn = f"{split_seed}:{group}", f"{split_seed}:order:{document.sequence or document.id}"
        keys += [hashlib.sha256(each.encode()).digest()[:8] for each in drawn]
        sizes.append((len(text), len(encoded), document.source))
    files = {".jsonl": "".join(lines).encode(), ".signatures": sign(compared).tobytes()}
    for suffix, content in files.items():
        path.with_suffix(suffix).write_bytes(content)
    about = {
        "counts": dict(counts),
        "changed": dict(changed),
        "checksums": [_checksum(content) for content in files.values()],
    }
    np.savez(
        path.with_suffix(".npz"),
        digests=np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2),
        keys=np.frombuffer(b"".join(keys), ">u8").astype("<u8").reshape(-1, 2),
        sizes=np.array(sizes, np.int64).reshape(-1, 3),
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
    )
    return path


def load_piece(path: Path) -> Piece:
    """Load what `clean_piece` wrote. Raises OSError or ValueError if a file is missing or damaged."""
    with np.load(path.with_suffix(".npz")) as arrays:
        about = json.loads(arrays["about"].tobytes())
        return Piece(arrays["digests"], *arrays["keys"].T, *arrays["sizes"].T, **about)


def is_whole(path: Path) -> bool:
    """Whether a piece was written before a restart, and none of its files is damaged."""
    try:
        piece = load_piece(path)
        contents = (path.with_suffix(suffix).read_bytes() for suffix in (".jsonl", ".signatures"))
        return [_checksum(content) for content in contents] == piece.checksums
    except Exception:  # a damaged archive raises errors of many types
        return False


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
