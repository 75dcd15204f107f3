"""Cross entropy of rows of logits in Triton (online softmax); the gradient overwrites the logits."""

import torch
import triton
import triton.language as tl

from kernels.device import arch
from kernels.elementwise import LOG2E, tanh
from kernels.linear_cross_entropy.config import config


@triton.jit
def _logits(row, columns, V, softcap, SOFTCAP: tl.constexpr, FAST: tl.constexpr):
    z = tl.load(row + columns, mask=columns < V, other=float("-inf")).to(tl.float32)
    t = z
    if SOFTCAP:
        t = tanh(tl.where(columns < V, z, 0.0) / softcap, FAST)
        z = tl.where(columns < V, t * softcap, float("-inf"))
    return z, t


@triton.jit
def cross_entropy(
    LOGITS, stride, TARGETS, LOSS, V, ignore, softcap, z_loss, smoothing,
    BLOCK: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTHING: tl.constexpr,
    GRADIENT: tl.constexpr, FAST: tl.constexpr,
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
        top, total, mean = float("-inf"), 0.0, 0.0
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            z, _ = _logits(row, columns, V, softcap, SOFTCAP, FAST)
            if SMOOTHING:
                mean += tl.sum(tl.where(columns < V, z, 0.0), 0) / V
            higher = tl.maximum(top, tl.max(z, 0))
            total = total * tl.exp2((top - higher) * LOG2E)
            total += tl.sum(tl.exp2((z - higher) * LOG2E), 0)
            top = higher
        lse = top + tl.log(total)
        if SOFTCAP:
            right = softcap * tanh(right / softcap, FAST)
        loss = lse - (1 - smoothing) * right + z_loss * lse * lse
        if SMOOTHING:
            loss -= smoothing * mean
        tl.store(LOSS + n, loss)
        if GRADIENT:
            for start in range(0, V, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                z, t = _logits(row, columns, V, softcap, SOFTCAP, FAST)
                g = tl.exp2((z - lse) * LOG2E) * (1 + 2 * z_loss * lse) - smoothing / V
                g = tl.where(columns == target, g - (1 - smoothing), g)
                if SOFTCAP:
                    g *= 1 - t * t
                tl.store(row + columns, g.to(LOGITS.dtype.element_ty), mask=columns < V)


def launch_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, ignore: int, softcap: float, z_loss: float,
    smoothing: float, gradient: bool,
) -> torch.Tensor:
    """Loss of each row, (N,) float32; with `gradient`, it overwrites `logits` (N, V) in place."""
    N, V = logits.shape
    target = arch(logits)
    fast = target.startswith("sm_") and logits.dtype == torch.bfloat16
    loss = torch.empty(N, dtype=torch.float32, device=logits.device)
    if N:
        cross_entropy[(N,)](
            logits, logits.stride(0), targets, loss, V, ignore, softcap, z_loss, smoothing,
            SOFTCAP=softcap > 0, SMOOTHING=smoothing > 0, GRADIENT=gradient, FAST=fast,
            **config(target, V),
        )
    return loss
