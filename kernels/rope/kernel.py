"""QK-norm and rotary position embedding in one Triton kernel, forward and backward."""

import torch
import triton
import triton.language as tl

from kernels.device import arch
from kernels.rope.config import PARTS, config


@triton.jit
def _halves(X, strides, batch, t, heads, H, half, HALF: tl.constexpr):
    d = tl.arange(0, HALF)
    inside = (heads < H)[:, None] & (d < half)[None, :]
    base = X + batch.to(tl.int64) * strides[0] + t.to(tl.int64) * strides[1]
    at = base + heads[:, None] * strides[2] + d[None, :]
    return at, inside


@triton.jit
def rope_forward(
    X, strides, TABLE, WEIGHT, Y, T, H, half, eps,
    HEADS: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
):
    """Y (B, T, H, D) contiguous; grid (B * T,); half = D / 2; TABLE (2, T, half)."""
    batch, t = tl.program_id(0) // T, tl.program_id(0) % T
    heads = tl.arange(0, HEADS)
    at, inside = _halves(X, strides, batch, t, heads, H, half, HALF)
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    d = tl.arange(0, HALF)
    if NORM:
        rstd = 1 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * half) + eps)
        a *= rstd[:, None] * tl.load(WEIGHT + d, mask=d < half, other=0.0).to(tl.float32)[None, :]
        b *= (
            rstd[:, None]
            * tl.load(WEIGHT + half + d, mask=d < half, other=0.0).to(tl.float32)[None, :]
        )
        a = a.to(Y.dtype.element_ty).to(tl.float32)
        b = b.to(Y.dtype.element_ty).to(tl.float32)
    cos = tl.load(TABLE + t * half + d, mask=d < half, other=0.0)[None, :]
    sin = tl.load(TABLE + (T + t) * half + d, mask=d < half, other=0.0)[None, :]
    out = Y + tl.program_id(0).to(tl.int64) * H * 2 * half + heads[:, None] * 2 * half + d[None, :]
    tl.store(out, (a * cos - b * sin).to(Y.dtype.element_ty), mask=inside)
    tl.store(out + half, (b * cos + a * sin).to(Y.dtype.element_ty), mask=inside)


@triton.jit
def rope_backward(
    DY, dy_strides, X, x_strides, TABLE, WEIGHT, DX, DW, rows, T, H, half, eps,
    HEADS: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
):
    """DX (B, T, H, D) contiguous, DW (programs, D) partial sums; grid (programs,)."""
    heads = tl.arange(0, HEADS)
    d = tl.arange(0, HALF)
    dw_a = tl.zeros([HALF], tl.float32)
    dw_b = tl.zeros([HALF], tl.float32)
    if NORM:
        w_a = tl.load(WEIGHT + d, mask=d < half, other=0.0).to(tl.float32)[None, :]
        w_b = tl.load(WEIGHT + half + d, mask=d < half, other=0.0).to(tl.float32)[None, :]
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        batch, t = row // T, row % T
        at, inside = _halves(DY, dy_strides, tl.cast(batch, tl.int64), tl.cast(t, tl.int64),
                             heads, H, half, HALF)
        g_a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        g_b = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
        cos = tl.load(TABLE + t * half + d, mask=d < half, other=0.0)[None, :]
        sin = tl.load(TABLE + (T + t) * half + d, mask=d < half, other=0.0)[None, :]
        # The transpose of a rotation is its inverse.
        a = g_a * cos + g_b * sin
        b = g_b * cos - g_a * sin
        if NORM:
            at, _ = _halves(X, x_strides, tl.cast(batch, tl.int64), tl.cast(t, tl.int64),
                            heads, H, half, HALF)
            x_a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            x_b = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
            rstd = 1 / tl.sqrt((tl.sum(x_a * x_a, 1) + tl.sum(x_b * x_b, 1)) / (2 * half) + eps)
            x_a *= rstd[:, None]
            x_b *= rstd[:, None]
            dw_a += tl.sum(a * x_a, 0)
            dw_b += tl.sum(b * x_b, 0)
            a *= w_a
            b *= w_b
            mean = (tl.sum(a * x_a, 1) + tl.sum(b * x_b, 1)) / (2 * half)
            a = rstd[:, None] * (a - x_a * mean[:, None])
            b = rstd[:, None] * (b - x_b * mean[:, None])
        out = DX + tl.cast(row, tl.int64) * H * 2 * half + heads[:, None] * 2 * half + d[None, :]
        tl.store(out, a.to(DX.dtype.element_ty), mask=inside)
        tl.store(out + half, b.to(DX.dtype.element_ty), mask=inside)
    if NORM:
        part = DW + tl.program_id(0) * 2 * half + d
        tl.store(part, dw_a, mask=d < half)
        tl.store(part + half, dw_b, mask=d < half)


def launch_rope(x, table, weight, eps):
    """The rotated x, (B, T, H, D) contiguous, dtype of x."""
    B, T, H, D = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rope_forward[(B * T,)](
        x, tuple(x.stride()[:3]), table, weight, y, T, H, D // 2, eps,
        NORM=weight is not None, **config(arch(x), H, D),
    )
    return y


def launch_rope_backward(dy, x, table, weight, eps):
    """(dx, dweight), dx contiguous; dweight is empty without a weight."""
    B, T, H, D = x.shape
    programs = min(B * T, PARTS)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    norm = weight is not None
    dw = torch.empty(programs if norm else 0, D, dtype=torch.float32, device=x.device)
    rope_backward[(programs,)](
        dy, tuple(dy.stride()[:3]), x, tuple(x.stride()[:3]), table, weight, dx, dw, B * T, T, H,
        D // 2, eps, NORM=norm, **config(arch(x), H, D),
    )
    return dx, dw.sum(0).to(weight.dtype) if norm else x.new_empty(0)
