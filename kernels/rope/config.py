"""Launch settings of the rotary kernels."""

from kernels.device import next_power_of_2, warps

PARTS = 1024  # programs of the backward pass, each with a partial sum of the weight gradient


def config(arch: str, heads: int, head_dim: int) -> dict[str, int]:
    """Two tiles of HEADS x HALF, and warps, per program, which holds all heads of a token."""
    tile = {"HEADS": next_power_of_2(heads), "HALF": next_power_of_2(head_dim // 2)}
    return tile | {"num_warps": warps(arch, 2 * tile["HEADS"] * tile["HALF"])}
