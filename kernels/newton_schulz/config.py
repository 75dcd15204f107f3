"""Tile sizes of the symmetric product."""

import torch


def config(arch: str, dtype: torch.dtype) -> dict[str, int]:
    """TILE x TILE of the result and DEPTH of the sum at a time, warps and pipeline stages.

    The largest that stay in registers (`python -m kernels.inspect`); no GPU has timed them yet.
    """
    if arch == "interpreter" or dtype == torch.float32:
        return {"TILE": 32, "DEPTH": 32, "num_warps": 4, "num_stages": 1}
    if arch.startswith("gfx"):
        return {"TILE": 64, "DEPTH": 32, "num_warps": 4, "num_stages": 2}
    return {"TILE": 128, "DEPTH": 64, "num_warps": 8, "num_stages": 3}
