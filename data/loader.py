"""The data order: a new permutation per epoch, the same for any number of ranks.

Epochs follow each other without a gap, so a batch can contain the end of one epoch and the start of
the next. The permutation is divided into global batches first and then over the ranks, and the
state counts global samples: a run that resumes on another number of ranks sees the same samples in
the same steps.
"""

import numpy as np


class Loader:
    """Draws the sample indices of the next global batch, or one rank's share of them."""

    def __init__(self, samples: int, batch_size: int, seed: int):
        """`samples` is the size of the dataset, `batch_size` the global batch size."""
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.cursor = 0
        self._order = self._permutation(0)

    def next(self, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Return this rank's indices of the next global batch, int64."""
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
        """Return the state for `restore`; valid for any number of ranks."""
        return {"epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state: dict[str, int]) -> None:
        """Continue after the batch at which `state` was saved."""
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self._order = self._permutation(self.epoch)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.samples)
