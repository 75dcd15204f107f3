"""Launch settings of the symmetric product."""

import torch


def config(arch: str, dtype: torch.dtype) -> dict[str, int]:
    """TILE x TILE outputs per program, DEPTH of the sum per iteration, warps, pipeline stages.

    The largest that fit in registers (`python -m kernels.inspect`); not yet timed on a GPU.
    """
    if arch == "interpreter" or dtype == torch.float32:
        return {"TILE": 32, "DEPTH": 32, "num_warps": 4, "num_stages": 1}
    if arch.startswith("gfx"):
        return {"TILE": 64, "DEPTH": 32, "num_warps": 4, "num_stages": 2}
    return {"TILE": 128, "DEPTH": 64, "num_warps": 8, "num_stages": 3}
