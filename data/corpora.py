"""Opens a corpus and streams its documents.

A corpus is a built-in name, a file or a folder of files (data/files.py), or the name of a dataset
on the Hugging Face hub, which the `datasets` library reads. Nothing is read into memory whole.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from configs.cli import UserError, nearest
from configs.schema import DataConfig
from data.files import (
    CONVERT,
    TABLES,
    check_file,
    fields,
    kind_of,
    list_files,
    read_rows,
    section_target,
)


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


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that `config.corpus` names.

    Raises UserError if there is none, if a file is binary or malformed, or a column is missing.
    """
    from data.builtin import BUILTIN  # it imports this module

    if config.corpus in BUILTIN:
        if config.document != "section":
            raise UserError(
                f'data.document = "{config.document}": {config.corpus} knows its documents'
            )
        return BUILTIN[config.corpus]()
    path = Path(config.corpus)
    if path.is_file():
        return _file_corpus(config, path, [path])
    if path.is_dir():
        return _file_corpus(config, path, list_files(path))
    looks_like_a_path = config.corpus.startswith((".", "/", "~")) or config.corpus.count("/") > 1
    if kind_of(path) in (*TABLES, *CONVERT, ".txt", ".md") or looks_like_a_path:
        raise UserError(f"data.corpus: {path}: no such file or folder")
    return _hub_corpus(config, list(BUILTIN))


def fingerprint_files(files: list[Path]) -> str:
    """SHA-256 over the contents of `files` in order."""
    total = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _file_corpus(config: DataConfig, root: Path, files: list[Path]) -> Corpus:
    for path in files:
        check_file(path, config)
    names = [path.relative_to(root).as_posix() if path != root else path.name for path in files]
    digests = hashlib.sha256()
    for name, path in zip(names, files, strict=True):
        digests.update(f"{name!a}:{fingerprint_files([path])}".encode())
    target = section_target(files, config)

    def read() -> Iterator[Document]:
        for name, path in zip(names, files, strict=True):
            for number, (text, group) in enumerate(read_rows(path, config, target)):
                yield Document(f"{name}:{number}", text, name if by_file else group)

    by_file = config.group_field == "file"
    return Corpus(root.name, digests.hexdigest(), read)


def _hub_corpus(config: DataConfig, builtin: list[str]) -> Corpus:
    from huggingface_hub import HfApi

    name, _, revision = config.corpus.partition("@")
    try:
        revision = revision or HfApi().dataset_info(name, timeout=10).sha or ""
    except Exception as error:  # the hub, its client and the network each have their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f'data.corpus = "{name}" is no file, folder or built-in{nearest(name, builtin)}'
        raise UserError(f"{message}; as a hub dataset: {reason}") from None

    def read() -> Iterator[Document]:
        from datasets import load_dataset

        try:
            rows = load_dataset(name, revision=revision, split="train", streaming=True)
            for number, row in enumerate(rows):
                yield Document(f"{name}:{number}", *fields(row, config, name))
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f'hub dataset "{name}": {reason}') from None

    return Corpus(name, f"{name}@{revision}", read)
