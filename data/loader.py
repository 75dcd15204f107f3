"""The order of the data: a new permutation per epoch, the same for any number of ranks.

Epochs follow each other without a gap, so a batch may hold the end of one and the start of the
next. The permutation is cut into global batches first and shared out to ranks after, and the state
counts global samples: a run resumed on another number of ranks sees the same samples in the same
steps.
"""

import numpy as np


class Loader:
    """Indices of the next global batch, or of one rank's share of it."""

    def __init__(self, samples: int, batch_size: int, seed: int):
        """`samples` in the data set, `batch_size` over all ranks."""
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.cursor = 0
        self._order = self._permutation(0)

    def next(self, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The rank's indices, int64; together the ranks' shares are the next global batch."""
        parts, missing = [], self.batch_size
        while missing:
            part = self._order[self.cursor : self.cursor + missing]
            parts.append(part)
            missing -= len(part)
            self.cursor += len(part)
            if self.cursor == self.samples:
                self.epoch, self.cursor = self.epoch + 1, 0
                self._order = self._permutation(self.epoch)
        return np.concatenate(parts)[rank::world_size]

    def state(self) -> dict[str, int]:
        """What `restore` needs; valid at any number of ranks."""
        return {"epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state: dict[str, int]) -> None:
        """Continue after the batch at which `state` was taken."""
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self._order = self._permutation(self.epoch)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.samples)
