"""The memory that a cell needs, in a process that measures one cell after another."""

import ctypes
import gc
import sys
from pathlib import Path

import torch

from train.metrics import peak_memory, reset_peak_memory


class PeakMemory:
    """The peak memory of a cell, as if it were alone in its process; on a GPU the peak allocation.

    What the process holds for other cells (the cached foundation model) is not counted.
    """

    def __init__(self, device: torch.device):
        """Call it before the process has loaded anything: the memory in use now counts for every cell."""
        self.device, self.own, self.held = device, _resident(), 0

    def start(self) -> None:
        """Start a cell: what is in use now belongs to others."""
        gc.collect()
        if sys.platform == "linux":  # free memory that the allocator keeps would hide what the cell takes
            ctypes.CDLL(None).malloc_trim(0)
        reset_peak_memory(self.device)
        self.held = _resident()

    def peak(self) -> int:
        """Bytes since `start`."""
        if self.device.type == "cuda":
            return peak_memory(self.device)
        return max(0, peak_memory(self.device) - self.held) + self.own


def _resident() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return int(status.read_text(encoding="utf-8").split("VmRSS:")[1].split()[0]) * 1024
