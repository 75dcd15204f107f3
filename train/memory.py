"""The best weights of a short run, kept in memory instead of checkpoints on disk."""

import torch
from torch import Tensor

from train.checkpoint import TrainState
from train.sharding import is_sharded


class BestWeights:
    """Takes the place of `train.saver.Saver` in a run on one device that is never resumed."""

    error: Exception | None = None
    is_writing = False

    def __init__(self) -> None:
        self.step, self.score = 0, float("inf")
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def save(self, state: TrainState, bits_per_byte: float | None) -> None:
        """Keep a copy of the trained parameters, or of their EMA, if their score is the best so far."""
        if bits_per_byte is None or not bits_per_byte < self.score:  # NaN is not better
            return
        assert not any(is_sharded(p) for p in state.parameters.values())
        self.step, self.score = state.progress.step, bits_per_byte
        self.weights = {name: (state.ema or state.parameters)[name].detach().clone() for name in state.parameters}

    @torch.no_grad()
    def restore(self, state: TrainState) -> None:
        """Load them into the model; nothing if no evaluation was finite."""
        for name, value in self.weights.items():
            state.parameters[name].copy_(value)

    def commit_or_discard(self, writing: float, failed: float) -> None:
        """Nothing is written."""

    def wait(self) -> None:
        """Nothing is written."""

    def finish(self) -> None:
        """Nothing is written."""
