"""Read the files of a corpus: text, source code, HTML, JSON lines, CSV and Parquet, also as .gz or .zst.

A path is opened as it is: never expanded as a glob pattern, never fetched as a URL. Files are
streamed; only a row, or a document that is a line or a file, is read as a whole.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cli.console import say
from cli.errors import UserError, first_line, nearest
from configs.schema import DataConfig

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
HTML = (".html", ".htm")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_HEAD = 1 << 16  # bytes read to detect the type of a file
_INVALID = 0.2  # above this share of invalid UTF-8 characters, a file is refused
_WARN = 0.001  # above this share, there is a warning
_PART = 1 << 20  # most characters of a line that are read at once
_LINE = 1 << 26  # most characters of a line that is a document
_SECTIONS = 20  # minimum number of sections of a small corpus, so that some can be held out
_FIELD = 2**31 - 1  # most characters in a CSV field

Row = tuple[str, str]
"""Text and group of a document."""


def list_files(root: Path) -> list[Path]:
    """List the readable files of a folder and its subfolders, sorted, without hidden files.

    Skips files that are not text and prints their number. Raises UserError if no file is left,
    OSError if a subfolder cannot be listed.
    """

    def reraise(error: OSError) -> None:
        raise error

    found: list[Path] = []
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=reraise, followlinks=True):
        real = os.path.realpath(folder)
        # A fixed order on every file system, with a folder before the links to it.
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".")),
            key=lambda name: (Path(folder, name).is_symlink(), name),
        )
        if real in visited:  # a link to a parent, or to a folder that is already listed
            folders.clear()
            continue
        visited.add(real)
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    kept: list[Path] = []
    skipped: list[Path] = []
    for path in sorted(found):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: is a link to a file that does not exist; remove the link")
        if not path.is_file():
            continue
        is_known = effective_suffix(path) in (*TABLES, ".txt", ".md")
        (kept if is_known or not _read_head(path)[0] else skipped).append(path)
    if skipped:
        shown = ", ".join(path.name for path in skipped[:3]) + (", …" if len(skipped) > 3 else "")
        say(f"{root}: {len(skipped)} files are not text and are skipped: {shown}")
    if not kept:
        raise UserError(f"{root}: no .txt, .jsonl, .parquet file or other text in this folder")
    return kept


def effective_suffix(path: Path) -> str:
    """Return the suffix of the uncompressed file, in lower case; it selects the reader."""
    suffix = path.suffix.lower()
    suffix = Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix
    return ".jsonl" if suffix == ".ndjson" else suffix


@contextmanager
def _open_bytes(path: Path) -> Iterator[Any]:
    # Opens a binary stream of the uncompressed bytes. Raises UserError, naming the file, if a read fails.
    kind = COMPRESSED.get(path.suffix.lower())
    try:
        with open(path, "rb") as file:
            if kind:
                import pyarrow

                yield pyarrow.CompressedInputStream(pyarrow.PythonFile(file), kind)
            else:
                yield file
    except OSError as error:
        why = error.strerror or f"it is damaged or truncated: {error}"  # pyarrow's errors have only a text
        raise UserError(f"{path}: cannot be read: {why}; check it, or move it out of the corpus") from None


def _read_head(path: Path) -> tuple[str, float]:
    # Describes a file that is not UTF-8 text ("" if it is), and the share of its characters that are invalid.
    with _open_bytes(path) as file:
        head = file.read(_HEAD)
    text = head.decode("utf-8", errors="replace")
    invalid = text.count("\ufffd") / max(1, len(text))
    if head.startswith(b"%PDF-"):
        return "a PDF; convert it to text first, with pdftotext for example", invalid
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16; convert it: iconv -f UTF-16 -t UTF-8", invalid
    if b"\0" in head:
        return "a binary file (it contains NUL bytes); convert it to text, or unpack it", invalid
    return "not UTF-8; convert it: iconv -f ENCODING -t UTF-8" if invalid > _INVALID else "", invalid


def check_file(path: Path, config: DataConfig, is_explicit: bool) -> None:
    """Raises UserError, naming the file and the fix, if its content does not fit its suffix.

    `is_explicit`: the user gave this file, not a folder that contains it.
    """
    suffix = effective_suffix(path)
    if suffix == ".parquet" and path.suffix.lower() in COMPRESSED:
        raise UserError(f"{path}: Parquet is already compressed; decompress it")
    if suffix in TABLES and config.document != "section":
        raise UserError(f'{path}: data.document = "{config.document}" is for text; here a row is a document: remove it')
    if suffix == ".json" and is_explicit:
        raise UserError(
            f"{path}: cannot read .json: it is one JSON value; write one object per line and call the file .jsonl"
        )
    if suffix == ".parquet":
        return
    found, invalid = _read_head(path)
    if found:
        raise UserError(f"{path}: is {found}")
    if invalid > _WARN:
        say(
            f"WARNING: {path}: {invalid:.1%} of its characters are not UTF-8 and are dropped; if it "
            "has another encoding, convert it: iconv -f ISO-8859-1 -t UTF-8"
        )


def section_target(files: Iterable[Path], config: DataConfig) -> int:
    """Return the characters per section: `section_chars`, or a twentieth of all text if less."""
    wanted, size = _SECTIONS * config.section_chars, 0
    for path in files:
        if effective_suffix(path) not in TABLES and size < wanted:
            with _open_bytes(path) as file:
                size += len(_decode(path, file).read(wanted))
    return max(1, min(config.section_chars, size // _SECTIONS))


def read_rows(path: Path, config: DataConfig, target: int) -> Iterator[Row]:
    """Stream the documents of one file; sections of text have about `target` characters.

    Raises UserError, naming the file and the line, for malformed content or a missing column.
    """
    kind = effective_suffix(path)
    if kind == ".parquet":
        yield from _parquet(path, config)
        return
    with _open_bytes(path) as compressed:
        file = _decode(path, compressed)
        if kind == ".jsonl":
            for number, row in parse_json_lines(path, file):
                yield fields(row, config, f"{path}: line {number}")
        elif kind in (".csv", ".tsv"):
            yield from _csv(path, file, config, "," if kind == ".csv" else "\t")
        else:
            yield from _text(path, file, config, target)


def _decode(path: Path, file: Any) -> IO[str]:
    # The text of an open file; of HTML the main text, without menus, scripts and tags.
    kind = effective_suffix(path)
    # A table keeps its line ends unchanged, because a quoted field can contain them.
    text = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="" if kind in TABLES else None)
    if kind not in HTML:
        return text
    try:
        from resiliparse.extract.html2text import extract_plain_text
    except ImportError:
        raise UserError(f"{path}: .html needs: pip install -e '.[html]'") from None
    return io.StringIO(extract_plain_text(text.read(), main_content=True))


def fields(row: dict[str, Any], config: DataConfig, place: str) -> Row:
    """Return text and group of a row. Raises UserError, naming `place`, for a missing column."""
    group_field = "" if config.group_field in ("file", "document") else config.group_field
    for key, field in (("text_field", config.text_field), ("group_field", group_field)):
        if field and field not in row:
            known = [name for name in row if isinstance(name, str)]
            hint = f"{nearest(field, known)}; set data.{key}"
            raise UserError(f'{place}: no column "{field}"{hint}')
    text = row[config.text_field]
    if text is not None and not isinstance(text, str):
        shown = repr(text)[:60]
        raise UserError(f'{place}: column "{config.text_field}" is {shown}, not text; set data.text_field')
    group = row[group_field] if group_field else None
    group = "" if group is None else str(group)
    return text or "", group.encode("utf-8", "backslashreplace").decode()


def _text(path: Path, file: IO[str], config: DataConfig, target: int) -> Iterator[Row]:
    if config.document == "file":
        yield file.read(), ""
        return
    if config.document == "line":
        for number, line in enumerate(iter(lambda: file.readline(_LINE), ""), 1):
            if len(line) == _LINE:
                raise UserError(
                    f'{path}: line {number} has {_LINE:,} characters or more; use data.document = "section"'
                )
            yield line, ""
        return
    # Split at line ends; a line much longer than a section, even than memory, is split at spaces.
    section: list[str] = []
    size = 0
    for line in iter(lambda: file.readline(_PART), ""):
        for piece in _split_line(line, target):
            section.append(piece)
            size += len(piece)
            if size >= target:
                yield "".join(section), ""
                section, size = [], 0
    if section:
        yield "".join(section), ""


def _split_line(line: str, target: int) -> Iterator[str]:
    start = 0
    while len(line) - start > 2 * target:
        space = line.rfind(" ", start, start + target)
        end = space + 1 if space > start else start + target
        yield line[start:end]
        start = end
    yield line[start:]


def parse_json_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict]]:
    """Parse one JSON object per non-empty line of `path`; yields the line numbers, from 1, and the objects.

    Raises UserError, naming the line, for anything else.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: not a JSON object; write one object per line")
        yield number, row


def _csv(path: Path, file: IO[str], config: DataConfig, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, _FIELD))
    rows = csv.DictReader(file, delimiter=delimiter, strict=True)
    try:
        for row in rows:
            yield fields(row, config, f"{path}: line {rows.line_num}")
    except csv.Error as error:
        raise UserError(
            f"{path}: line {rows.line_num}: malformed {effective_suffix(path)[1:].upper()}: {error}; a "
            'field with quotes must be written "like ""this"""'
        ) from None


def _parquet(path: Path, config: DataConfig) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            known = dict.fromkeys(file.schema_arrow.names)
            fields(known, config, str(path))  # raises UserError for a missing column
            names = sorted({config.text_field, config.group_field} & known.keys())
            for batch in file.iter_batches(1024, columns=names):
                for row in batch.to_pylist():
                    yield fields(row, config, str(path))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as Parquet: {first_line(error)}; check the file") from None
