"""The batches of a run, loaded one step ahead by a thread."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from data.loader import Loader, Mixture
from model.transformer import IGNORE
from train.distributed import Ranks
from train.forward import Batch, DataSet


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of a global batch, as micro-batches for gradient accumulation."""

    micro_batches: list[Batch]
    """On the CPU; in pinned memory if the run is on a GPU, so that copies need no host sync."""
    tokens: int
    """Targets with a loss."""
    padded: int
    """All input tokens."""
    epoch: float
    """Epochs of data before this batch."""
    position: dict
    """The position in the data order after this batch."""


class Batches:
    """Yields the batches of a data order; the next one is loaded while the current step runs.

    `state` and `restore` are those of `Loader`, as of the last batch that was taken.
    """

    def __init__(self, train_set: DataSet, loader: Loader | Mixture, ranks: Ranks, micro_batch_size: int):
        self.train_set, self.loader, self.ranks, self.size = train_set, loader, ranks, micro_batch_size
        self.position = loader.state()
        self.thread = ThreadPoolExecutor(1, "batches")
        self.loading: Future[StepBatch] | None = None

    def next(self) -> StepBatch:
        """The next batch; waits if it is not loaded yet."""
        loading = self.loading or self.thread.submit(self._load)
        batch = loading.result()
        self.position = batch.position
        self.loading = self.thread.submit(self._load)
        return batch

    def state(self) -> dict:
        """The position in the data order after the last batch that `next` returned."""
        return self.position

    def restore(self, position: dict) -> None:
        """Continue after the batch at which `position` was taken; a batch loaded ahead is dropped."""
        self._drop()
        self.loader.restore(position)
        self.position = position

    def close(self) -> None:
        """End the thread."""
        self._drop()
        self.thread.shutdown()

    def _drop(self) -> None:
        if self.loading is not None:
            self.loading.exception()  # waits: the thread must not move the loader any more
            self.loading = None

    def _load(self) -> StepBatch:
        loader, size = self.loader, self.size
        epoch = loader.epochs
        indices = loader.next(self.ranks.rank, self.ranks.world_size)
        batches = [self.train_set.batch(indices[i : i + size]) for i in range(0, len(indices), size)]
        tokens = sum(int((targets != IGNORE).sum()) for _, targets in batches)
        padded = sum(inputs.numel() for inputs, _ in batches)
        # A copy from strided memory goes through memory that is not pinned, and the host waits for it.
        batches = [(inputs.contiguous(), targets.contiguous()) for inputs, targets in batches]
        if self.ranks.device.type == "cuda":
            batches = [(inputs.pin_memory(), targets.pin_memory()) for inputs, targets in batches]
        return StepBatch(batches, tokens, padded, epoch, loader.state())
