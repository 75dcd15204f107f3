"""Files that are there whole or not at all: written aside, fsynced, renamed.

A process may be killed at any moment. What it leaves aside is unlocked by its death, and the next
process that writes to the same place removes it.
"""

import contextlib
import errno
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

_LOCK_NAME = ".filling"  # locked in a folder aside while a process fills it
_MIN_AGE = 10.0  # seconds: a younger file aside may not be locked yet


def try_lock(file: IO) -> bool:
    """Lock an open file until it is closed or the process ends; False if another one holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 30)  # a byte that is there for nothing else: Windows locks bytes
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system that has no locks says so: then nothing can be locked there.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
    return True


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file: after a crash it holds the old content or the new. Raises OSError."""
    _remove_abandoned(path)
    aside = _temporary_path(path)
    try:
        with open(aside, "xb") as file:
            try_lock(file)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, keep_existing: Callable[[Path], object]) -> Iterator[Path]:
    """A folder to fill, which then stands at `path`, fsynced; after an error nothing has changed.

    If something is at `path` when it is filled, `keep_existing` says whether that is kept and the new one
    dropped (another process was faster), or replaced; it may raise to refuse both.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    aside, old = _temporary_path(path), _temporary_path(path)
    aside.mkdir()
    try:
        with open(aside / _LOCK_NAME, "xb") as lock:
            try_lock(lock)
            yield aside
            for file in aside.rglob("*"):
                if file.is_file() and file.name != _LOCK_NAME:
                    sync_file(file)
            for part in (*filter(Path.is_dir, aside.rglob("*")), aside):
                sync_folder(part)
        (aside / _LOCK_NAME).unlink()
        for last in (False, True):
            if path.exists():
                if keep_existing(path):
                    return
                os.utime(path)  # young: no other process takes it for a leftover
                path.rename(old)
            try:
                aside.rename(path)
                break
            except OSError:  # another process was faster by a moment
                if old.exists() and not path.exists():
                    old.rename(path)
                if last:
                    raise
        sync_folder(path.parent)
    finally:
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Bring a file's content to the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk; Windows does that by itself."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safe_join(folder: Path, name: object) -> Path:
    """The file `name` of `folder`. Raises ValueError if the name, read from a file, leads out."""
    text = str(name)
    if text in ("", ".", "..") or any(letter in text for letter in "/\\:\0"):
        raise ValueError(f"{text!r} is not the name of a file in this folder")
    return folder / text


def read_json(path: Path) -> Any:
    """The value of a JSON file; None if it is missing, empty or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: NaN and infinities become null."""
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
    # In a cache, whose names are hashes, those of other contents too: none may be asked for again.
    names = "[0-9a-f]{16}" if re.fullmatch("[0-9a-f]{16}", path.name) else re.escape(path.name)
    for left in list(path.parent.glob(".*.tmp")):
        if not re.fullmatch(rf"\.{names}\.[0-9a-f]{{8}}\.tmp", left.name):
            continue
        lock = left / _LOCK_NAME if left.is_dir() else left
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime < _MIN_AGE:
                continue
            if lock.exists():
                with open(lock, "rb+") as file:
                    if not try_lock(file):
                        continue
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_manifest(folder: Path, values: dict) -> None:
    """Write a folder's manifest.json: `values`, and the size of every other file in it."""
    others = (p for p in sorted(folder.iterdir()) if p.name not in (_LOCK_NAME, "manifest.json"))
    sizes = {path.name: path.stat().st_size for path in others}
    write_atomically(folder / "manifest.json", to_json(values | {"files": sizes}, 2) + "\n")


def valid_manifest(folder: Path) -> dict | None:
    """The manifest of a folder; None if it is missing or damaged, or a file is not of its size."""
    manifest = read_json(folder / "manifest.json")
    try:
        for name, size in manifest["files"].items():
            if safe_join(folder, name).stat().st_size != size:
                return None
    except (TypeError, KeyError, AttributeError, ValueError, OSError):
        return None
    return manifest
