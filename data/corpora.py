"""Open a corpus and stream its documents.

A corpus is a built-in name, a file or a folder of files (data/readers.py), or the name of a dataset
on the Hugging Face hub, read with the `datasets` library. No corpus is read into memory as a whole.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from cli.console import say
from cli.errors import UserError, first_line, nearest
from cli.revisions import is_commit
from configs.schema import DataConfig
from data.builtin import BUILTIN
from data.documents import Corpus, Document, fingerprint_files
from data.readers import COMPRESSED, TABLES, check_file, effective_suffix, fields, list_files, read_rows, section_target


def open_corpus(config: DataConfig) -> Corpus:
    """Open the corpus named by `config.corpus`.

    Raises UserError if it does not exist, if a file is binary or malformed, or a column is missing.
    """
    if config.corpora:
        return _mixture(config)
    if config.corpus in BUILTIN:
        if config.document != "section":
            raise UserError(f'data.document = "{config.document}": {config.corpus} has its own documents; remove it')
        return BUILTIN[config.corpus]()
    path = Path(config.corpus)
    if path.is_file():
        return _file_corpus(config, path, [path])
    if path.is_dir():
        return _file_corpus(config, path, list_files(path))
    if not _is_hub_name(config.corpus):
        raise UserError(f"data.corpus: {path}: no such file or folder; check the path")
    return _hub_corpus(config)


def pin_dataset(corpus: str) -> str:
    """Add the commit to the name of a hub dataset; other names stay unchanged. Raises UserError."""
    return _resolve_revision(corpus) if _is_hub_name(corpus) else corpus


def _mixture(config: DataConfig) -> Corpus:
    parts = [open_corpus(config.model_copy(update={"corpus": c.path, "corpora": []})) for c in config.corpora]
    skipped: list[str] = []

    def read() -> Iterator[Document]:
        skipped.clear()
        for number, part in enumerate(parts):
            for document in part.read():
                yield document._replace(id=f"{number}/{document.id}", source=number)
            skipped.extend(part.skipped)

    names = [part.name for part in parts]
    fingerprint = hashlib.sha256(":".join(part.fingerprint for part in parts).encode()).hexdigest()
    characters = sum(part.characters for part in parts) if all(part.characters for part in parts) else 0
    return Corpus(" + ".join(names), fingerprint, read, skipped, characters, names)


def _file_corpus(config: DataConfig, root: Path, files: list[Path]) -> Corpus:
    skipped: list[str] = []
    broken: list[str] = []  # found before reading

    def skip(path: Path, error: UserError, found: list[str]) -> None:
        if path == root:
            raise error
        if config.on_error == "stop":
            raise UserError(f'{error}; to leave such files out, set data.on_error = "skip"') from None
        say(f"WARNING: {error}; skipped")
        found.append(str(error))

    whole = []
    for path in files:
        try:
            check_file(path, config, is_explicit=path == root)
            whole.append(path)
        except UserError as error:
            skip(path, error, broken)
    files = whole
    relative = [path.relative_to(root if path != root else root.parent).as_posix() for path in files]
    names = [os.fsencode(name).decode("utf-8", errors="backslashreplace") for name in relative]
    digests = hashlib.sha256()
    for name, path in zip(names, files, strict=True):
        digests.update(f"{name}:{fingerprint_files([path])}".encode())
    target = section_target(files, config)

    def read() -> Iterator[Document]:
        skipped[:] = broken
        for name, path in zip(names, files, strict=True):
            sequence = name if config.document == "section" and effective_suffix(path) not in TABLES else ""
            try:
                for number, (text, group) in enumerate(read_rows(path, config, target)):
                    yield Document(f"{name}:{number}", text, name if by_file else group, sequence=sequence)
            except UserError as error:
                skip(path, error, skipped)

    by_file = config.group_field == "file"
    is_plain = all(path.suffix.lower() not in (*COMPRESSED, ".parquet") for path in files)
    characters = sum(path.stat().st_size for path in files) if is_plain else 0
    return Corpus(root.name, digests.hexdigest(), read, skipped, characters)


def _is_hub_name(corpus: str) -> bool:
    path = Path(corpus)
    name = corpus.partition("@")[0]  # a revision may contain slashes
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()
    return not (corpus in BUILTIN or is_path or effective_suffix(path) in (*TABLES, ".txt", ".md"))


def _resolve_revision(corpus: str) -> str:
    # Turns NAME or NAME@BRANCH into NAME@COMMIT, because a branch can move.
    from huggingface_hub import HfApi

    name, _, revision = corpus.partition("@")
    if is_commit(revision):
        return corpus
    try:
        found = HfApi().dataset_info(name, revision=revision or None, timeout=10).sha
    except Exception as error:  # the hub, its client and the network raise different types
        message = f'data.corpus = "{name}" is not a file, folder or built-in corpus{nearest(name, list(BUILTIN))}'
        raise UserError(f"{message}; as a hub dataset: {first_line(error)}") from None
    return f"{name}@{found}"


def _hub_corpus(config: DataConfig) -> Corpus:
    resolved = _resolve_revision(config.corpus)
    name, _, revision = resolved.partition("@")
    if Path(name).exists():  # `datasets` would read the local folder instead
        raise UserError(f"data.corpus: {name} is also a local folder; write ./{name} to read the folder")

    def read() -> Iterator[Document]:
        from datasets import load_dataset

        try:
            rows = load_dataset(name, revision=revision, split="train", streaming=True)
            for number, row in enumerate(rows):
                yield Document(f"{name}:{number}", *fields(row, config, name))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f'hub dataset "{name}": {first_line(error)}') from None

    return Corpus(name, resolved, read)
