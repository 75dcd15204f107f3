"""What keeps the host ahead of the device: results read one step late, and no garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from train.batches import StepBatch


class LateRead:
    """Device scalars on their way to the host.

    On a GPU the copy goes to pinned memory behind the work that computes the values; `read` waits
    for it alone. Read after the next step has been launched, the device has work meanwhile.
    """

    def __init__(self, *values: torch.Tensor):
        """`values` are scalars on one device."""
        stacked = torch.stack([value.double() for value in values])
        self.event = None
        if stacked.is_cuda:
            self.host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self.host.copy_(stacked, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.host = stacked

    @property
    def is_on_host(self) -> bool:
        """Whether `read` never waits; the same on all ranks."""
        return self.event is None

    def read(self) -> list[float]:
        """The values, in the order of the arguments."""
        if self.event is not None:
            self.event.synchronize()
        return self.host.tolist()


@dataclass(frozen=True)
class UnreadStep:
    """A step that the device may still be at."""

    row: dict
    """Its row of metrics.jsonl, without what only the finished step knows."""
    batch: StepBatch
    padded: int
    """Input tokens of all ranks."""
    flops: float
    results: LateRead
    """Loss and gradient norm."""


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Without the collector of reference cycles inside the `with` block: it stops a step for up to 0.5 s."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
