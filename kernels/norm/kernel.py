"""RMSNorm with an optional residual in Triton, forward and backward; one row per iteration."""

import torch
import triton
import triton.language as tl

from kernels.device import arch
from kernels.norm.config import PARTS, config


@triton.jit
def rms_norm_forward(X, RESIDUAL, WEIGHT, Y, H, RSTD, C, eps, BLOCK: tl.constexpr, ADD: tl.constexpr):
    """Y = H * RSTD * WEIGHT with H = X + RESIDUAL, all (N, C) contiguous; grid (N,)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < C
    h = tl.load(X + row * C + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        h += tl.load(RESIDUAL + row * C + columns, mask=inside, other=0.0).to(tl.float32)
        # The norm uses the sum as stored, rounded to the dtype of H.
        h = h.to(H.dtype.element_ty)
        tl.store(H + row * C + columns, h, mask=inside)
        h = h.to(tl.float32)
    rstd = 1 / tl.sqrt(tl.sum(h * h, 0) / C + eps)
    tl.store(RSTD + row, rstd)
    weight = tl.load(WEIGHT + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(Y + row * C + columns, (h * rstd * weight).to(Y.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward(DY, DH, H, WEIGHT, RSTD, DX, DW, N, C, BLOCK: tl.constexpr, ADD: tl.constexpr):
    """DX (N, C), and in row i of DW (programs, C) the partial sum of program i; grid (programs,).

    With ADD, DH is the gradient of the second output, H, and is added to DX.
    """
    columns = tl.arange(0, BLOCK)
    inside = columns < C
    weight = tl.load(WEIGHT + columns, mask=inside, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0), N, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * C + columns
        h = tl.load(H + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(DY + at, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(RSTD + row)
        normal = h * rstd
        dw += dy * normal
        g = dy * weight
        dx = rstd * (g - normal * (tl.sum(g * normal, 0) / C))
        if ADD:
            dx += tl.load(DH + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=inside)
    tl.store(DW + tl.program_id(0) * C + columns, dw, mask=inside)


def launch_norm(x, residual, weight, eps):
    """(y, h, rstd): y and h like x, rstd (rows,) float32; without a residual h is x itself."""
    C = x.shape[-1]
    N = x.numel() // C
    y = torch.empty_like(x)
    h = x if residual is None else torch.empty_like(x)
    rstd = torch.empty(N, dtype=torch.float32, device=x.device)
    rms_norm_forward[(N,)](x, residual, weight, y, h, rstd, C, eps, ADD=residual is not None, **config(arch(x), C))
    return y, h, rstd


def launch_norm_backward(dy, dh, h, weight, rstd):
    """(dx, dweight), like h and weight; dx is also the gradient of the residual."""
    C = h.shape[-1]
    N = h.numel() // C
    programs = min(N, PARTS)
    dx = torch.empty_like(h)
    dw = torch.empty(programs, C, dtype=torch.float32, device=h.device)
    rms_norm_backward[(programs,)](dy, dh, h, weight, rstd, dx, dw, N, C, ADD=dh is not None, **config(arch(h), C))
    return dx, dw.sum(0).to(weight.dtype)
