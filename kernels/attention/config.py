"""Tile sizes of the attention kernels per architecture: a plain table, no autotuning.

The sm_90 tiles are the fastest on an H200 (`python -m kernels.tune`; kernels/results/tiles-*). The
others were chosen ahead of time: the largest that keep every value in registers
(`python -m kernels.inspect`). They have not been timed on a GPU yet.
"""

from typing import Literal, NamedTuple

import torch

from kernels.device import next_power_of_2

Pass = Literal["forward", "keys", "queries"]


class Tiles(NamedTuple):
    """M queries by N keys, warps, pipeline stages, and whether loads use tensor descriptors (TMA)."""

    M: int
    N: int
    warps: int
    stages: int
    descriptor: bool = False


# One row for head_dim <= 64 and one for <= 128: (forward, dk and dv, dq).
TABLE = {
    "sm_80": (
        (Tiles(128, 64, 4, 3), Tiles(32, 128, 8, 2), Tiles(64, 64, 4, 2)),
        (Tiles(128, 64, 8, 3), Tiles(64, 64, 8, 2), Tiles(64, 64, 8, 2)),
    ),
    "sm_90": (
        (Tiles(64, 64, 4, 3), Tiles(32, 64, 4, 3), Tiles(64, 64, 4, 3)),
        (Tiles(64, 64, 4, 3), Tiles(32, 64, 4, 3), Tiles(64, 64, 4, 3)),
    ),
    "sm_100": (
        (Tiles(128, 128, 8, 2), Tiles(64, 128, 8, 2), Tiles(128, 64, 8, 2)),
        (Tiles(128, 128, 8, 2), Tiles(64, 64, 8, 2), Tiles(128, 64, 8, 2)),
    ),
    "gfx942": (
        (Tiles(64, 64, 4, 2), Tiles(32, 64, 8, 1), Tiles(64, 64, 4, 2)),
        (Tiles(64, 64, 4, 2), Tiles(32, 32, 4, 1), Tiles(64, 32, 4, 1)),
    ),
}
# float32 has no matrix instructions at full precision and needs twice the registers.
FLOAT32 = (
    (Tiles(32, 32, 8, 1), Tiles(32, 32, 8, 1), Tiles(32, 32, 8, 1)),
    (Tiles(32, 32, 8, 1), Tiles(16, 16, 8, 1), Tiles(16, 16, 8, 1)),
)


def padded_width(head_dim: int) -> int:
    """The width of a tile: a power of two and at least 16, as matrix instructions require."""
    return max(16, next_power_of_2(head_dim))


def config(arch: str, which: Pass, head_dim: int, dtype: torch.dtype) -> Tiles:
    """Tiles of the `which` kernel on `arch` ("sm_90", "gfx942", "interpreter").

    NVIDIA architectures without a row use the nearest older row: registers and instructions are
    similar within a generation, and shared memory stays below the smallest limit of it.
    """
    if arch == "interpreter":
        return Tiles(32, 32, 4, 1)
    column = ("forward", "keys", "queries").index(which)
    if dtype == torch.float32:
        if arch.startswith("gfx"):
            return Tiles(32, 32, 4, 1)
        return FLOAT32[head_dim > 64][column]
    if arch not in TABLE:
        number = int(arch[3:]) if arch.startswith("sm_") else 0
        # 86, 89 and 120 (consumer GPUs) have the instructions of 80.
        arch = "sm_90" if 90 <= number < 100 else "sm_100" if 100 <= number < 120 else "sm_80"
    return TABLE[arch][head_dim > 64][column]._replace(descriptor=arch in ("sm_90", "sm_100"))
