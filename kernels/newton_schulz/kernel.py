"""The symmetric product X X^T in Triton: computes the tiles on and below the diagonal and mirrors them."""

import torch
import triton
import triton.language as tl

from kernels.device import arch
from kernels.newton_schulz.config import config


@triton.jit
def symmetric_product(
    X, stride_b, stride_m, stride_k, OUT, M, K, TILE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr
):
    """OUT (B, M, M) contiguous = X X^T for X (B, M, K); grid (tiles, tiles, B)."""
    i, j = tl.program_id(0), tl.program_id(1)
    if j > i:
        return
    X += tl.program_id(2).to(tl.int64) * stride_b
    OUT += tl.program_id(2).to(tl.int64) * M * M
    rows = i * TILE + tl.arange(0, TILE)
    columns = j * TILE + tl.arange(0, TILE)
    acc = tl.zeros([TILE, TILE], tl.float32)
    for k in range(0, K, DEPTH):
        depth = k + tl.arange(0, DEPTH)
        a = tl.load(
            X + rows[:, None].to(tl.int64) * stride_m + depth[None, :] * stride_k,
            mask=(rows < M)[:, None] & (depth < K)[None, :],
            other=0.0,
        )
        b = tl.load(
            X + columns[None, :].to(tl.int64) * stride_m + depth[:, None] * stride_k,
            mask=(columns < M)[None, :] & (depth < K)[:, None],
            other=0.0,
        )
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    value = acc.to(OUT.dtype.element_ty)
    # The product of a tile with its own transpose may round differently above the diagonal.
    below = (rows < M)[:, None] & (columns[None, :] <= rows[:, None])
    tl.store(OUT + rows[:, None].to(tl.int64) * M + columns[None, :], value, mask=below)
    tl.store(OUT + columns[None, :].to(tl.int64) * M + rows[:, None], value, mask=below)


def launch_symmetric_product(x: torch.Tensor) -> torch.Tensor:
    """(B, M, M) contiguous for x (B, M, K), dtype of x."""
    B, M, K = x.shape
    out = torch.empty(B, M, M, dtype=x.dtype, device=x.device)
    sizes = config(arch(x), x.dtype)
    tiles = triton.cdiv(M, sizes["TILE"])
    symmetric_product[(tiles, tiles, B)](
        x, *x.stride(), out, M, K, PRECISION="ieee" if x.dtype == torch.float32 else "tf32", **sizes
    )
    return out
