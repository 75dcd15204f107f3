"""Work folders: the intermediate results of long data preparation, from which a killed run continues."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cli.atomic import try_lock
from cli.console import say
from cli.errors import UserError

ABANDONED_DAYS = 7  # age at which the work folder of a killed run is removed


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A folder for the intermediate results of `folder`, locked; waits while another process holds it.

    It is removed at the end, and after a UserError: a mended corpus has another folder. A process
    that is killed, or stopped by another error, leaves it behind, and the next one continues.
    """
    work = folder.with_name(f".{folder.name}.work")
    for old in folder.parent.glob(".*.work"):
        with contextlib.suppress(OSError):
            if old != work and time.time() - old.stat().st_mtime > 86_400 * ABANDONED_DAYS:
                with open(old / "lock", "rb+") as its_lock:
                    if try_lock(its_lock):
                        shutil.rmtree(old)
    waits = False
    while True:
        work.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(work / "lock", "ab")
        except FileNotFoundError:  # the other process has ended and removed the folder
            continue
        with lock:
            if not try_lock(lock):
                if not waits:
                    say(f"another process prepares {folder}; waiting for it")
                waits = True
                time.sleep(0.5)
                continue
            if not _is_at(lock, work / "lock"):
                continue
            try:
                yield work
            except UserError:
                shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(work, ignore_errors=True)  # Windows keeps the open lock until it is abandoned
            return


def _is_at(file: IO, path: Path) -> bool:
    # Whether an open file is still the one at `path`.
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
