"""Opens a corpus and streams its documents.

A corpus is a built-in name, a file or a folder of files (data/readers.py), or the name of a dataset
on the Hugging Face hub, which the `datasets` library reads. Nothing is read into memory whole.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from cli.errors import UserError, nearest
from cli.revisions import is_commit
from configs.schema import DataConfig
from data.builtin import BUILTIN
from data.documents import Corpus, Document, fingerprint_files
from data.readers import CONVERT, TABLES, check_file, effective_suffix, fields, list_files, read_rows, section_target


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that `config.corpus` names.

    Raises UserError if there is none, if a file is binary or malformed, or a column is missing.
    """
    if config.corpus in BUILTIN:
        if config.document != "section":
            raise UserError(f'data.document = "{config.document}": {config.corpus} has its own documents; leave it out')
        return BUILTIN[config.corpus]()
    path = Path(config.corpus)
    if path.is_file():
        return _file_corpus(config, path, [path])
    if path.is_dir():
        return _file_corpus(config, path, list_files(path))
    if not _on_hub(config.corpus):
        raise UserError(f"data.corpus: {path}: no such file or folder; check the path")
    return _hub_corpus(config)


def pin_revision(corpus: str) -> str:
    """The name of a hub dataset with its commit; any other name as it is. Raises UserError."""
    return _resolved(corpus) if _on_hub(corpus) else corpus


def utf8_name(path: Path) -> str:
    """A path as text that can be encoded; bytes of it that are not UTF-8 are written out."""
    return os.fsencode(path.as_posix()).decode("utf-8", errors="backslashreplace")


def _file_corpus(config: DataConfig, root: Path, files: list[Path]) -> Corpus:
    for path in files:
        check_file(path, config, named=path == root)
    names = [utf8_name(path.relative_to(root) if path != root else Path(path.name)) for path in files]
    digests = hashlib.sha256()
    for name, path in zip(names, files, strict=True):
        digests.update(f"{name}:{fingerprint_files([path])}".encode())
    target = section_target(files, config)

    def read() -> Iterator[Document]:
        for name, path in zip(names, files, strict=True):
            for number, (text, group) in enumerate(read_rows(path, config, target)):
                yield Document(f"{name}:{number}", text, name if by_file else group)

    by_file = config.group_field == "file"
    return Corpus(root.name, digests.hexdigest(), read)


def _on_hub(corpus: str) -> bool:
    path = Path(corpus)
    name = corpus.partition("@")[0]  # a revision may have slashes
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()
    return not (corpus in BUILTIN or is_path or effective_suffix(path) in (*TABLES, *CONVERT, ".txt", ".md"))


def _resolved(corpus: str) -> str:
    # NAME, NAME@BRANCH or NAME@COMMIT as NAME@COMMIT: what a branch holds may change.
    from huggingface_hub import HfApi

    name, _, revision = corpus.partition("@")
    if is_commit(revision):
        return corpus
    try:
        found = HfApi().dataset_info(name, revision=revision or None, timeout=10).sha
    except Exception as error:  # the hub, its client and the network each have their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = nearest(name, list(BUILTIN))
        message = f'data.corpus = "{name}" is no file, folder or built-in{hint}'
        raise UserError(f"{message}; as a hub dataset: {reason}") from None
    return f"{name}@{found}"


def _hub_corpus(config: DataConfig) -> Corpus:
    resolved = _resolved(config.corpus)
    name, _, revision = resolved.partition("@")
    if Path(name).exists():  # `datasets` would read that instead
        raise UserError(f"data.corpus: {name} is a folder here too; give it as ./{name}")

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

    return Corpus(name, resolved, read)
