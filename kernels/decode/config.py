"""Launch settings of the decode kernels."""

from kernels.device import next_power_of_2, warps

LEAST_ROWS = 16  # rows of a matrix instruction: a group of fewer queries is padded
SPLITS = 16  # parts of a row's keys, so that a batch of one fills the device


def config(group: int, head_dim: int, item_bytes: int) -> dict[str, int]:
    """Tiles of ROWS queries (a group), KEYS keys of a step and DIM columns, and warps, per program."""
    dim = max(16, next_power_of_2(head_dim))
    keys = 64 if dim * item_bytes <= 256 else 32  # larger tiles of float32 spill registers
    rows = max(LEAST_ROWS, next_power_of_2(group))
    return {"ROWS": rows, "KEYS": keys, "DIM": dim, "num_warps": 4 if keys == 64 else 8}


def combine_config(arch: str, head_dim: int) -> dict[str, int]:
    """A tile of SPLITS partial results, and warps, per program, which holds a head."""
    dim = next_power_of_2(head_dim)
    return {"DIM": dim, "num_warps": warps(arch, SPLITS * dim)}
