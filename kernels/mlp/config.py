"""Launch settings of the activation kernels."""

from kernels.device import warps


def config(arch: str) -> dict[str, int]:
    """BLOCK elements and warps per program."""
    return {"BLOCK": 1024, "num_warps": warps(arch, 1024)}
