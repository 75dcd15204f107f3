"""Work folders: the intermediate results of long data preparation, from which a killed run continues."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
                with open(old / "lock", "rb+") as lock:
                    if try_lock(lock):
                        shutil.rmtree(old)
    waits = False
    while True:
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "ab") as lock:
            if not try_lock(lock):
                if not waits:
                    say(f"another process prepares {folder}; waiting for it")
                waits = True
                time.sleep(0.5)
                continue
            if not (work / "lock").exists():  # removed by the process that held it
                continue
            try:
                yield work
            except UserError:
                shutil.rmtree(work)
                raise
            shutil.rmtree(work)
            return
