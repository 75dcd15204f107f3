"""Cross entropy of rows of logits in Triton (online softmax); the gradient overwrites the logits."""

import torch
import triton
import triton.language as tl

from kernels.device import arch
from kernels.linear_cross_entropy.config import config

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def cross_entropy(
    LOGITS, stride, TARGETS, LOSS, V, ignore, BLOCK: tl.constexpr, GRADIENT: tl.constexpr
):
    """LOSS (N,) float32 of each row of LOGITS (N, V); grid (N,).

    GRADIENT overwrites the logits with the gradient of the loss, and ignored rows with 0.
    """
    n = tl.program_id(0)
    row = LOGITS + n.to(tl.int64) * stride
    target = tl.load(TARGETS + n)
    if target == ignore:
        tl.store(LOSS + n, 0.0)
        if GRADIENT:
            for start in range(0, V, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                zero = tl.zeros([BLOCK], LOGITS.dtype.element_ty)
                tl.store(row + columns, zero, mask=columns < V)
    else:
        # Read before the reductions below: their barriers order it before other warps' writes.
        right = tl.load(row + target).to(tl.float32)
        top, total = float("-inf"), 0.0
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            z = tl.load(row + columns, mask=columns < V, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(top, tl.max(z, 0))
            total = total * tl.exp2((top - higher) * LOG2E)
            total += tl.sum(tl.exp2((z - higher) * LOG2E), 0)
            top = higher
        lse = top + tl.log(total)
        tl.store(LOSS + n, lse - right)
        if GRADIENT:
            for start in range(0, V, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                z = tl.load(row + columns, mask=columns < V, other=float("-inf")).to(tl.float32)
                g = tl.exp2((z - lse) * LOG2E)
                g = tl.where(columns == target, g - 1, g)
                tl.store(row + columns, g.to(LOGITS.dtype.element_ty), mask=columns < V)


def launch_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, ignore: int, gradient: bool
) -> torch.Tensor:
    """Loss of each row, (N,) float32; with `gradient`, it overwrites `logits` (N, V) in place."""
    N, V = logits.shape
    loss = torch.empty(N, dtype=torch.float32, device=logits.device)
    if N:
        cross_entropy[(N,)](
            logits, logits.stride(0), targets, loss, V, ignore, GRADIENT=gradient, **config(arch(logits), V)
        )
    return loss
