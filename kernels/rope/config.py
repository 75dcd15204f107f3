"""How positions are laid over programs."""

from kernels.device import power_of_2, warps

PARTS = 1024  # programs of the backward pass, each with its own sum of the weight's gradient


def config(arch: str, heads: int, head_dim: int) -> dict[str, int]:
    """HEADS x HALF elements, twice, and warps of one program, which holds all heads of a token."""
    tile = {"HEADS": power_of_2(heads), "HALF": power_of_2(head_dim // 2)}
    return tile | {"num_warps": warps(arch, 2 * tile["HEADS"] * tile["HALF"])}
