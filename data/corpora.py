"""Opens a corpus and streams its documents; the `datasets` library does the reading.

A corpus is a built-in name, a .txt, .jsonl or .parquet file, a folder of such files, or the name of
a dataset on the Hugging Face hub. Nothing is read into memory whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from configs.cli import UserError, nearest
from configs.schema import DataConfig

KINDS = (".txt", ".jsonl", ".parquet")


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
        return BUILTIN[config.corpus]()
    path = Path(config.corpus)
    if path.is_file():
        return _file_corpus(config, path, [path])
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in KINDS and p.is_file())
        if not files:
            raise UserError(f"{path}: no {', '.join(KINDS)} file in this folder")
        return _file_corpus(config, path, files)
    looks_like_a_path = config.corpus.startswith((".", "/", "~")) or config.corpus.count("/") > 1
    if path.suffix in KINDS or looks_like_a_path:
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
        if path.suffix not in KINDS:
            raise UserError(f"{path}: cannot read {path.suffix or 'this'}: use {' '.join(KINDS)}")
        with open(path, "rb") as file:
            if path.suffix != ".parquet" and b"\0" in file.read(65536):
                raise UserError(f"{path}: binary file (it holds NUL bytes); give text")

    def read() -> Iterator[Document]:
        for path in files:
            name = str(path.relative_to(root)) if path != root else path.name
            rows = _sections(path, config) if path.suffix == ".txt" else _rows(path, config)
            for number, (text, group) in enumerate(rows):
                if config.group_field == "file":
                    group = name
                yield Document(f"{name}:{number}", text, group)

    return Corpus(root.name, fingerprint_files(files), read)


def _sections(path: Path, config: DataConfig) -> Iterator[tuple[str, str]]:
    # Cut at line ends, so that one long file still has documents to hold out; a line much longer
    # than a section (a file without line breaks) is cut at spaces.
    target = min(config.section_chars, max(1, path.stat().st_size // 20))
    lines = _stream(
        "text", path, keep_linebreaks=True, encoding_errors="replace", chunksize=1 << 20
    )
    section: list[str] = []
    size = 0
    for row in lines:
        for piece in _pieces(row["text"], target):
            section.append(piece)
            size += len(piece)
            if size >= target:
                yield "".join(section), ""
                section, size = [], 0
    if section:
        yield "".join(section), ""


def _pieces(line: str, target: int) -> Iterator[str]:
    start = 0
    while len(line) - start > 2 * target:
        space = line.rfind(" ", start, start + target)
        end = space + 1 if space > start else start + target
        yield line[start:end]
        start = end
    yield line[start:]


def _rows(path: Path, config: DataConfig) -> Iterator[tuple[str, str]]:
    kind = "json" if path.suffix == ".jsonl" else "parquet"
    try:
        for row in _stream(kind, path):
            yield _fields(row, config, str(path))
    except UserError:
        raise
    except Exception as error:
        _blame_json_line(path)
        raise UserError(f"{path}: not readable as {kind}: {str(error).splitlines()[0]}") from None


def _fields(row: dict[str, Any], config: DataConfig, place: str) -> tuple[str, str]:
    group_field = "" if config.group_field in ("file", "document") else config.group_field
    for field in filter(None, (config.text_field, group_field)):
        if field not in row:
            raise UserError(f'{place}: no column "{field}"{nearest(field, list(row))}')
    text = row[config.text_field]
    if text is not None and not isinstance(text, str):
        raise UserError(f'{place}: column "{config.text_field}" holds {text!r}, not text')
    return text or "", str(row[group_field]) if group_field else ""


def _stream(kind: str, path: Path, **options: Any) -> Iterator[dict]:
    from datasets import load_dataset  # slow to import; cached corpora do not need it

    return iter(load_dataset(kind, data_files=str(path), split="train", streaming=True, **options))


def _blame_json_line(path: Path) -> None:
    if path.suffix != ".jsonl":
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise UserError(f"{path}: line {number}: malformed JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number}: not a JSON object")


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
                yield Document(f"{name}:{number}", *_fields(row, config, name))
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f'hub dataset "{name}": {reason}') from None

    return Corpus(name, f"{name}@{revision}", read)
