"""The types Document and Corpus: a corpus is a name, a fingerprint and a stream of documents."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Document(NamedTuple):
    """A piece of text; a document is never divided between splits."""

    id: str
    text: str
    group: str = ""
    """Documents of one group stay in one split; if empty, the document is its own group."""
    dedup_text: str = ""
    """Words that near-duplicate removal compares; if empty, the text."""
    sequence: str = ""
    """Documents of one sequence, the sections of a file, stay together and in order; if empty, the document alone."""
    source: int = 0
    """Number of the corpus in a mixture (data.corpora)."""


@dataclass(frozen=True)
class Corpus:
    """A source of documents; each call of `read()` starts a new pass over them."""

    name: str
    fingerprint: str
    read: Callable[[], Iterator[Document]]
    skipped: list[str] = field(default_factory=list)
    """Filled by `read`: why files were skipped (data.on_error = "skip")."""
    characters: int = 0
    """Roughly how many there are, for progress; 0 if that is unknown."""
    sources: list[str] = field(default_factory=list)
    """Names of the corpora of a mixture."""


def fingerprint_files(files: list[Path]) -> str:
    """Return the SHA-256 of the contents of `files`, in order."""
    total = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
