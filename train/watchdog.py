"""Names the rank that hangs, its step and its stack, instead of waiting for ever."""

import faulthandler
import os
import sys
import tempfile
import threading
import time

from train.checkpoint import Progress
from train.distributed import Ranks

EXIT_STATUS = 75  # "try again later"; torchrun starts such a run again where it is allowed to


class Watchdog:
    """A thread that ends the process when its rank has shown no life for `limit` seconds.

    A rank shows life whenever it meets the others or finishes a batch (`Ranks.heartbeat`). The counts
    are told through the store that the ranks share, which works while they wait for each other: the
    one with the lowest is the one that they wait for.
    """

    def __init__(self, ranks: Ranks, limit: float, progress: Progress):
        self.ranks, self.limit, self.progress = ranks, limit, progress
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self.ranks.heartbeat()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.limit / 4)):
            self.ranks.publish(f"{self.ranks.heartbeats} {self.progress.step + 1}")
            idle = time.monotonic() - self.ranks.last_heartbeat
            if idle < self.limit:
                continue
            told = [tuple(map(int, word.split())) for word in self.ranks.published()]
            behind = told.index(min(told))
            with tempfile.TemporaryFile() as file:
                faulthandler.dump_traceback(file=file)
                file.seek(0)
                stack = file.read().decode()
            own = self.ranks.rank
            sys.stderr.write(  # at once: other ranks are writing too
                f"rank {own}: nothing has moved for {idle:.0f} s; the ranks wait for rank "
                f"{behind}, in step {told[behind][1]}. The stack of rank {own}:\n{stack}"
            )
            sys.stderr.flush()
            # Each waits for the other: only the end of the process is sure to be seen.
            os._exit(EXIT_STATUS)
