"""Launch settings of the cross entropy kernel."""

from kernels.device import next_power_of_2, warps


def config(arch: str, V: int) -> dict[str, int]:
    """BLOCK logits per iteration and warps of one program, which iterates over a row of V."""
    block = min(4096, next_power_of_2(V))
    return {"BLOCK": block, "num_warps": warps(arch, block)}
