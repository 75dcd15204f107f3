"""How rows are laid over programs."""

from kernels.device import power_of_2, warps

PARTS = 256  # programs of the backward pass, each with its own sum of the weight's gradient


def config(arch: str, C: int) -> dict[str, int]:
    """BLOCK columns and warps of one program, which holds a row of C elements."""
    block = power_of_2(C)
    return {"BLOCK": block, "num_warps": warps(arch, block)}
