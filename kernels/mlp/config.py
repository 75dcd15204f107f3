"""How elements are laid over programs."""

from kernels.device import warps


def config(arch: str) -> dict[str, int]:
    """BLOCK elements and warps of one program."""
    return {"BLOCK": 1024, "num_warps": warps(arch, 1024)}
