"""What a corpus is: a name, a fingerprint, and a stream of documents."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Document(NamedTuple):
    """A piece of text that is never split further."""

    id: str
    text: str
    group: str = ""
    """Documents of one group stay in one split; empty: a group of its own."""
    near: str = ""
    """What near-duplicates are judged by, as words; empty: the text."""


@dataclass(frozen=True)
class Corpus:
    """Where documents come from; `read()` starts a new pass over them."""

    name: str
    fingerprint: str
    read: Callable[[], Iterator[Document]]


def fingerprint_files(files: list[Path]) -> str:
    """SHA-256 over the contents of `files` in order."""
    total = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
