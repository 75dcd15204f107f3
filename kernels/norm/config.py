"""Launch settings of the norm kernels."""

from kernels.device import next_power_of_2, warps

PARTS = 256  # programs of the backward pass, each with a partial sum of the weight gradient


def config(arch: str, C: int) -> dict[str, int]:
    """BLOCK columns and warps per program, which holds a row of C elements."""
    block = next_power_of_2(C)
    return {"BLOCK": block, "num_warps": warps(arch, block)}
