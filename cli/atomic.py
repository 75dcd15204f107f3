"""Atomic writes of files and folders: write to a temporary path, fsync, rename.

A process may be killed at any moment. Its temporary files stay behind unlocked, and the next
process that writes to the same path removes them.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_LOCK_NAME = ".filling"  # a file in a temporary folder, locked while a process fills the folder
_MIN_AGE = 10.0  # seconds; a younger temporary file may not be locked yet


def try_lock(file: IO) -> bool:
    """Lock an open file until it is closed or the process ends; False if another process holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 30)  # Windows locks bytes: use one beyond the content
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Other errors mean that the file system has no locks: count the file as locked.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
    return True


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file; after a crash it holds the old or the new content. Raises OSError."""
    _remove_abandoned(path)
    temporary = _temporary_path(path)
    try:
        with open(temporary, "xb") as file:
            try_lock(file)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, keep_existing: Callable[[Path], object]) -> Iterator[Path]:
    """A temporary folder to fill, then fsynced and renamed to `path`; an error changes nothing.

    If `path` exists by then, `keep_existing(path)` decides: true keeps it and discards the new
    folder (another process was faster), false replaces it, and an exception does neither.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    new, old = _temporary_path(path), _temporary_path(path)
    new.mkdir()
    try:
        with open(new / _LOCK_NAME, "xb") as lock:
            try_lock(lock)
            yield new
            for file in new.rglob("*"):
                if file.is_file() and file.name != _LOCK_NAME:
                    sync_file(file)
            for part in (*filter(Path.is_dir, new.rglob("*")), new):
                sync_folder(part)
        (new / _LOCK_NAME).unlink()
        for is_last in (False, True):
            if path.exists():
                if keep_existing(path):
                    return
                os.utime(path)  # a recent time stamp, so that no other process removes it as abandoned
                path.rename(old)
            try:
                new.rename(path)
                break
            except OSError:  # another process has created `path` meanwhile
                if old.exists() and not path.exists():
                    old.rename(path)
                if is_last:
                    raise
        sync_folder(path.parent)
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Fsync a file's content."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Fsync the names in a folder; Windows needs no such call."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safe_join(folder: Path, name: object) -> Path:
    """`folder` / `name`, for a name from an untrusted file.

    Raises ValueError unless it is a plain file name, so that the path stays in the folder.
    """
    text = str(name)
    if text in ("", ".", "..") or any(letter in text for letter in "/\\:\0"):
        raise ValueError(f"{text!r} is not the name of a file in this folder")
    return folder / text


def read_json(path: Path) -> Any:
    """The value of a JSON file; None if it is missing, empty or damaged."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def parse_json(text: str) -> Any:
    """The value of a JSON text; None if it is damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def to_json(value: Any, indent: int | None = None) -> str:
    """Standard JSON: NaN and infinities become null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _remove_abandoned(path: Path) -> None:
    # In a cache, whose names are hashes, remove those of all entries: nobody may write them again.
    names = "[0-9a-f]{16}" if re.fullmatch("[0-9a-f]{16}", path.name) else re.escape(path.name)
    for leftover in list(path.parent.glob(".*.tmp")):
        if not re.fullmatch(rf"\.{names}\.[0-9a-f]{{8}}\.tmp", leftover.name):
            continue
        lock = leftover / _LOCK_NAME if leftover.is_dir() else leftover
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime < _MIN_AGE:
                continue
            if lock.exists():
                with open(lock, "rb+") as file:
                    if not try_lock(file):
                        continue
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_manifest(folder: Path, values: dict) -> None:
    """Write a folder's manifest.json: `values`, plus size and checksum of every other file."""
    files = [p for p in sorted(folder.iterdir()) if p.name not in (_LOCK_NAME, "manifest.json")]
    about = {
        "files": {path.name: path.stat().st_size for path in files},
        "checksums": {path.name: _checksum(path) for path in files},
    }
    write_atomically(folder / "manifest.json", to_json(values | about, 2) + "\n")


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def valid_manifest(folder: Path) -> dict | None:
    """The manifest of a folder; None if it or a file is missing or damaged.

    A file of the right size that was touched after the manifest has its checksum verified.
    """
    manifest = read_json(folder / "manifest.json")
    try:
        checksums, written = manifest.get("checksums", {}), (folder / "manifest.json").stat().st_mtime_ns
        for name, size in manifest["files"].items():
            path = safe_join(folder, name)
            found = path.stat()
            if found.st_size != size:
                return None
            if name in checksums and found.st_mtime_ns > written and _checksum(path) != checksums[name]:
                return None
    except (TypeError, KeyError, AttributeError, ValueError, OSError):
        return None
    return manifest
