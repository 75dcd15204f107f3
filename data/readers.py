"""Reads the files of a corpus: text and source code, JSON lines, CSV, Parquet; .gz and .zst too.

A path is only ever opened, never taken for a pattern or an address. Nothing is read whole, except
a row and, if so asked, a line or a file.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cli.console import say
from cli.errors import UserError, nearest
from configs.schema import DataConfig

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
# What is never text, for a message that says more than that it is binary.
CONVERT = {
    ".pdf": "a PDF; convert it to text first, with pdftotext for example",
    ".docx": "a Word document; save it as plain text",
    ".odt": "an OpenDocument text; save it as plain text",
    ".epub": "an e-book; convert it to text first, with pandoc for example",
    ".zip": "an archive; unpack it and give the folder",
    ".tar": "an archive; unpack it and give the folder",
    ".tgz": "an archive; unpack it and give the folder",
    ".json": "one JSON value; write one object per line and call the file .jsonl",
    ".exe": "a program",
}
_HEAD = 1 << 16  # bytes that tell what a file is
_INVALID = 0.2  # share of a text's characters that are not UTF-8 from which on it is not UTF-8
_WARN = 0.001  # share of them from which on it is said
_PART = 1 << 20  # characters of a long line that are read at a time
_SECTIONS = 20  # that a small corpus is cut into at least, so that some can be held out
_FIELD = 2**31 - 1  # characters in a field of a CSV file, at most

Row = tuple[str, str]
"""A document's text and its group."""


def list_files(root: Path) -> list[Path]:
    """The files of a folder that can be read, sorted; hidden ones are left out.

    Files that are not text are counted in a line to the user. Raises UserError if none is left,
    OSError if a folder in it cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        # In one order, whatever the disk's, and a folder before the links to it.
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".")),
            key=lambda name: (Path(folder, name).is_symlink(), name),
        )
        if real in visited:  # a link back up, or to a folder that is read already
            folders.clear()
            continue
        visited.add(real)
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    kept: list[Path] = []
    skipped: list[Path] = []
    for path in sorted(found):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: is a link to a file that does not exist; remove it")
        if not path.is_file():
            continue
        named = effective_suffix(path) in (*TABLES, ".txt", ".md")
        (kept if named or not detect_non_text(path) else skipped).append(path)
    if skipped:
        shown = ", ".join(path.name for path in skipped[:3]) + (", …" if len(skipped) > 3 else "")
        say(f"{root}: {len(skipped)} files are not text and are left out: {shown}")
    if not kept:
        raise UserError(f"{root}: no .txt, .jsonl, .parquet file or other text in this folder")
    return kept


def effective_suffix(path: Path) -> str:
    """The suffix that tells how a file is read: that of what is packed in it, in lower case."""
    suffix = path.suffix.lower()
    suffix = Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix
    return ".jsonl" if suffix == ".ndjson" else suffix


@contextmanager
def _named(path: Path) -> Iterator[None]:
    # What the system says of a failed read does not name the file.
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be read: {reason}; check it, or move it away") from None


def detect_non_text(path: Path) -> str:
    """What a file is, if it is not UTF-8 text; empty if it is. Raises UserError."""
    suffix = effective_suffix(path)
    if suffix in CONVERT and suffix != ".json":
        return CONVERT[suffix]
    with _named(path), _open_bytes(path) as file:
        head = file.read(_HEAD)
    if head.startswith(b"%PDF-"):
        return CONVERT[".pdf"]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16; convert it: iconv -f UTF-16 -t UTF-8"
    if b"\0" in head:
        return "a binary file (it holds NUL bytes); give text"
    if _invalid_share(head) > _INVALID:
        return "not UTF-8; convert it: iconv -f ENCODING -t UTF-8"
    return ""


def _invalid_share(head: bytes) -> float:
    text = head.decode("utf-8", errors="replace")
    return text.count("\ufffd") / max(1, len(text))


def check_file(path: Path, config: DataConfig, named: bool) -> None:
    """Raises UserError, naming the file and the fix, if it cannot be read as what it is called.

    `named`: the user has named this very file, and not a folder that it is in.
    """
    suffix = effective_suffix(path)
    if suffix == ".parquet" and path.suffix.lower() in COMPRESSED:
        raise UserError(f"{path}: Parquet is packed already; unpack it")
    if suffix in TABLES and config.document != "section":
        raise UserError(f'{path}: data.document = "{config.document}" is for text; a row is a document: leave it out')
    if suffix in CONVERT and (named or suffix != ".json"):
        raise UserError(f"{path}: cannot read {suffix}: it is {CONVERT[suffix]}")
    if suffix == ".parquet":
        return
    if reason := detect_non_text(path):
        raise UserError(f"{path}: is {reason}")
    with _open_bytes(path) as file:
        share = _invalid_share(file.read(_HEAD))
    if share > _WARN:
        say(
            f"WARNING: {path}: {share:.1%} of its characters are not UTF-8 and are dropped; if it "
            "is in another encoding, convert it: iconv -f ISO-8859-1 -t UTF-8"
        )


def section_target(files: Iterable[Path], config: DataConfig) -> int:
    """Characters of a section: `section_chars`, or a twentieth of all text if that is less."""
    wanted, size = _SECTIONS * config.section_chars, 0
    for path in files:
        if effective_suffix(path) not in TABLES and size < wanted:
            with io.TextIOWrapper(_open_bytes(path), "utf-8", errors="replace") as file:
                size += len(file.read(wanted))
    return max(1, min(config.section_chars, size // _SECTIONS))


def read_rows(path: Path, config: DataConfig, target: int) -> Iterator[Row]:
    """The documents of one file; sections of text have about `target` characters.

    Raises UserError, naming the file and the line, for a malformed one or a missing column.
    """
    kind = effective_suffix(path)
    if kind == ".parquet":
        return _parquet(path, config)
    readers: dict[str, Callable[[IO[str]], Iterator[Row]]] = {
        ".jsonl": lambda file: _json_lines(path, file, config),
        ".csv": lambda file: _csv(path, file, config, ","),
        ".tsv": lambda file: _csv(path, file, config, "\t"),
    }
    return _reading(path, kind in TABLES, readers.get(kind, lambda f: _text(f, config, target)))


def fields(row: dict[str, Any], config: DataConfig, place: str) -> Row:
    """Text and group of a row. Raises UserError, naming `place`, for a column that is not there."""
    group_field = "" if config.group_field in ("file", "document") else config.group_field
    for key, field in (("text_field", config.text_field), ("group_field", group_field)):
        if field and field not in row:
            known = [name for name in row if isinstance(name, str)]
            hint = f"{nearest(field, known)}; name it with data.{key}"
            raise UserError(f'{place}: no column "{field}"{hint}')
    text = row[config.text_field]
    if text is not None and not isinstance(text, str):
        shown = repr(text)[:60]
        raise UserError(f'{place}: column "{config.text_field}" holds {shown}, not text')
    group = row[group_field] if group_field else None
    group = "" if group is None else str(group)
    return text or "", group.encode("utf-8", "backslashreplace").decode()


def _reading(path: Path, exact: bool, read: Callable[[IO[str]], Iterator[Row]]) -> Iterator[Row]:
    with _named(path), _open_bytes(path) as packed:
        # Only a table's reader may see line ends as they are: a quoted field may hold some.
        newline = "" if exact else None
        yield from read(io.TextIOWrapper(packed, "utf-8-sig", errors="replace", newline=newline))


def _text(file: IO[str], config: DataConfig, target: int) -> Iterator[Row]:
    if config.document == "file":
        yield file.read(), ""
        return
    if config.document == "line":
        for line in file:
            yield line, ""
        return
    # Cut at line ends; a line much longer than a section (or than all memory) is cut at spaces.
    section: list[str] = []
    size = 0
    for line in iter(lambda: file.readline(_PART), ""):
        for piece in _pieces(line, target):
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


def _json_lines(path: Path, file: IO[str], config: DataConfig) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: malformed JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{place}: not a JSON object")
        yield fields(row, config, place)


def _csv(path: Path, file: IO[str], config: DataConfig, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, _FIELD))
    rows = csv.DictReader(file, delimiter=delimiter, strict=True)
    try:
        for row in rows:
            yield fields(row, config, f"{path}: line {rows.line_num}")
    except csv.Error as error:
        raise UserError(
            f"{path}: line {rows.line_num}: malformed {effective_suffix(path)[1:].upper()}: {error}; a "
            'field with quotes in it is written "like ""this"""'
        ) from None


def _parquet(path: Path, config: DataConfig) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            known = dict.fromkeys(file.schema_arrow.names)
            fields(known, config, str(path))  # refuses a column that is not there
            names = sorted({config.text_field, config.group_field} & known.keys())
            for batch in file.iter_batches(1024, columns=names):
                for row in batch.to_pylist():
                    yield fields(row, config, str(path))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not readable as parquet: {reason}") from None


class _Decompressed(io.RawIOBase):
    """The bytes of a packed file; damage is a UserError that names it."""

    def __init__(self, path: Path, kind: str):
        import pyarrow

        self.path, self.failed = path, (pyarrow.ArrowException, OSError)
        self.packed = open(path, "rb")
        self.file = pyarrow.CompressedInputStream(pyarrow.PythonFile(self.packed), kind)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self.file.read(len(buffer))
        except self.failed as error:
            raise UserError(f"{self.path}: is damaged or cut off: {error}") from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.packed.close()
        super().close()


def _open_bytes(path: Path) -> IO[bytes]:
    kind = COMPRESSED.get(path.suffix.lower())
    return io.BufferedReader(_Decompressed(path, kind), _PART) if kind else open(path, "rb")
