"""How a row of logits is read by its program."""

from kernels.device import power_of_2, warps


def config(arch: str, V: int) -> dict[str, int]:
    """BLOCK logits at a time, and warps of one program, which walks along a row of V."""
    block = min(4096, power_of_2(V))
    return {"BLOCK": block, "num_warps": warps(arch, block)}
