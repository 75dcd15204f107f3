"""A watchdog that reports which rank hangs, with its step and stack, and ends the run."""

import faulthandler
import os
import sys
import tempfile
import threading
import time

from train.checkpoint import Progress
from train.distributed import Ranks

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h; torchrun restarts the run if --max-restarts allows


class Watchdog:
    """A thread that ends the process when its rank has had no heartbeat for `limit` seconds.

    Every collective and every evaluated batch is a heartbeat (`Ranks.heartbeat`). The counts are
    exchanged through torch's key-value store, which works while a collective hangs. The rank with
    the lowest count is the one that hangs.
    """

    def __init__(self, ranks: Ranks, limit: float, progress: Progress):
        self.ranks, self.limit, self.progress = ranks, limit, progress
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self.ranks.heartbeat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._finished.wait(min(1.0, self.limit / 4)):
            self.ranks.publish(f"{self.ranks.heartbeats} {self.progress.step + 1}")
            idle = time.monotonic() - self.ranks.last_heartbeat
            if idle < self.limit:
                continue
            counts = [tuple(map(int, status.split())) for status in self.ranks.published()]
            slowest = counts.index(min(counts))
            with tempfile.TemporaryFile() as file:
                faulthandler.dump_traceback(file=file)
                file.seek(0)
                stack = file.read().decode()
            own = self.ranks.rank
            sys.stderr.write(  # in one call, because other ranks write too
                f"rank {own}: no progress for {idle:.0f} s; the ranks wait for rank "
                f"{slowest}, in step {counts[slowest][1]}. The stack of rank {own}:\n{stack}"
            )
            sys.stderr.flush()
            # The main thread may hang in a collective, where no exception reaches it.
            os._exit(EXIT_STATUS)
