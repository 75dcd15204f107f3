"""The data order: a new permutation per epoch, the same for any number of ranks.

Epochs follow each other without a gap, so a batch can contain the end of one epoch and the start of
the next. The permutation is divided into global batches first and then over the ranks, and the
state counts global samples: a run that resumes on another number of ranks sees the same samples in
the same steps.
"""

from collections.abc import Sequence
from typing import Any

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
        return self.draw(self.batch_size)[rank::world_size]

    def draw(self, count: int) -> np.ndarray:
        """The next `count` indices, int64."""
        parts, missing = [], count
        while missing:
            part = self._order[self.cursor : self.cursor + missing]
            parts.append(part)
            missing -= len(part)
            self.cursor += len(part)
            if self.cursor == self.samples:
                self.epoch, self.cursor = self.epoch + 1, 0
                self._order = self._permutation(self.epoch)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    @property
    def epochs(self) -> float:
        """Epochs drawn so far."""
        return self.epoch + self.cursor / self.samples

    def state(self) -> dict[str, int]:
        """Return the state for `restore`; valid for any number of ranks."""
        return {"epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state: dict[str, int]) -> None:
        """Continue after the batch at which `state` was saved."""
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self._order = self._permutation(self.epoch)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.samples)


class Mixture:
    """Draws from several parts of a dataset by weight; each part has epochs of its own.

    The number of samples of a part is at all times within one of its share.
    """

    def __init__(self, parts: Sequence[tuple[int, int]], weights: Sequence[float], batch_size: int, seed: int):
        """`parts` are the first index and the number of samples of each part."""
        self.first = [first for first, _ in parts]
        self.shares = np.array(weights) / sum(weights)
        self.loaders = [Loader(count, batch_size, seed + number) for number, (_, count) in enumerate(parts)]
        self.batch_size, self.seed = batch_size, seed
        self.drawn = np.zeros(len(parts), np.int64)

    def next(self, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Return this rank's indices of the next global batch, int64."""
        total = int(self.drawn.sum())
        counts = np.zeros(len(self.drawn), np.int64)
        for sample in range(total + 1, total + self.batch_size + 1):
            counts[np.argmax(self.shares * sample - self.drawn - counts)] += 1
        self.drawn += counts
        drawn = zip(self.first, self.loaders, counts.tolist(), strict=True)
        batch = np.concatenate([first + loader.draw(count) for first, loader, count in drawn])
        # Else a rank would see some parts more often than another.
        return np.random.default_rng((self.seed, total)).permutation(batch)[rank::world_size]

    @property
    def epochs(self) -> float:
        """Samples drawn so far, relative to those of all parts."""
        return float(self.drawn.sum() / sum(loader.samples for loader in self.loaders))

    def state(self) -> dict[str, Any]:
        """Return the state for `restore`; valid for any number of ranks."""
        return {"drawn": self.drawn.tolist(), "parts": [loader.state() for loader in self.loaders]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which `state` was saved."""
        self.drawn = np.array(state["drawn"])
        for loader, own in zip(self.loaders, state["parts"], strict=True):
            loader.restore(own)


def build_loader(dataset: Any, batch_size: int, seed: int) -> Loader | Mixture:
    """The data order of a dataset: by weight, if it has weights."""
    if not getattr(dataset, "weights", None):
        return Loader(len(dataset), batch_size, seed)
    return Mixture([(first, count) for _, first, count in dataset.parts], dataset.weights, batch_size, seed)
