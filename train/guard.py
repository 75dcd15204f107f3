"""Detects bad steps: a non-finite loss or gradient, or a loss spike."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from cli.console import say
from cli.errors import UserError
from model.formats.native import write_file
from train.checkpoint import Progress

MAX_SKIPPED = 10  # skipped steps in a row after which the run fails
RECENT = 50  # number of recent losses that a new loss is compared with
MAX_REWOUND = 5  # rewinds per run
SPIKE = 6  # standard deviations above the mean of the recent losses


class Guard:
    """Checks each step's loss and gradient norm, which are the same on every rank."""

    def __init__(self, run: Path, rank: int, progress: Progress):
        self.run, self.rank, self.progress = run, rank, progress
        self.in_a_row = 0

    def check_finite(self, step: int, loss: float, norm: float, batches: Sequence[tuple[torch.Tensor, ...]]) -> bool:
        """Whether loss and gradient norm are finite; else the device has skipped the update.

        After MAX_SKIPPED skipped steps in a row, writes the batch to disk and raises UserError.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return True
        self.progress.skipped += 1
        self.in_a_row += 1
        say(f"step {step}: loss is {loss}, gradient norm {norm}; step skipped")
        if self.in_a_row == MAX_SKIPPED:
            kept = {
                f"{kind}.{i}": tensor.contiguous()
                for i, batch in enumerate(batches)
                for kind, tensor in zip(("inputs", "targets"), batch, strict=True)
            }
            name = f"bad-batch-{step}-rank-{self.rank}.safetensors"
            write_file(self.run, name, kept)
            raise UserError(
                f"{MAX_SKIPPED} steps in a row without a finite gradient; lower "
                'train.learning_rate or use train.precision = "float32"; the last batch is in '
                f"{self.run / name}"
            )
        return False

    def is_spike(self, step: int, loss: float) -> bool:
        """Whether a step's mean loss is far above the recent ones; else it joins them if finite."""
        recent = self.progress.recent
        if len(recent) == RECENT:
            usual, spread = statistics.fmean(recent), statistics.stdev(recent)
            if loss > usual + SPIKE * spread:
                if self.progress.rewound == MAX_REWOUND:
                    return False
                say(f"step {step}: loss spike: {loss:.4f}, the recent mean is {usual:.4f}")
                return True
        if math.isfinite(loss):
            recent.append(loss)
            del recent[:-RECENT]
        return False
