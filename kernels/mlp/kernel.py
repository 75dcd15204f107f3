"""Gated SiLU and squared ReLU in Triton, forward and backward, over flat tensors."""

import torch
import triton
import triton.language as tl

from kernels.device import arch
from kernels.mlp.config import config


@triton.jit
def swiglu_forward(A, B, Y, n, BLOCK: tl.constexpr):
    """Y = silu(A) * B; grid (n / BLOCK,)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(A + at, mask=at < n, other=0.0).to(tl.float32)
    b = tl.load(B + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(Y + at, (a * tl.sigmoid(a) * b).to(Y.dtype.element_ty), mask=at < n)


@triton.jit
def swiglu_backward(DY, A, B, DA, DB, n, BLOCK: tl.constexpr):
    """Gradients of A and B; recomputes the sigmoid."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(DY + at, mask=at < n, other=0.0).to(tl.float32)
    a = tl.load(A + at, mask=at < n, other=0.0).to(tl.float32)
    b = tl.load(B + at, mask=at < n, other=0.0).to(tl.float32)
    s = tl.sigmoid(a)
    da = dy * b * s * (1 + a * (1 - s))
    tl.store(DA + at, da.to(DA.dtype.element_ty), mask=at < n)
    tl.store(DB + at, (dy * a * s).to(DB.dtype.element_ty), mask=at < n)


@triton.jit
def relu2_forward(A, Y, n, BLOCK: tl.constexpr):
    """Y = max(A, 0)^2; grid (n / BLOCK,)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.maximum(tl.load(A + at, mask=at < n, other=0.0).to(tl.float32), 0.0)
    tl.store(Y + at, (a * a).to(Y.dtype.element_ty), mask=at < n)


@triton.jit
def relu2_backward(DY, A, DA, n, BLOCK: tl.constexpr):
    """Gradient of A."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(DY + at, mask=at < n, other=0.0).to(tl.float32)
    a = tl.maximum(tl.load(A + at, mask=at < n, other=0.0).to(tl.float32), 0.0)
    tl.store(DA + at, (2 * a * dy).to(DA.dtype.element_ty), mask=at < n)


def launch_swiglu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """silu(a) * b, shape and dtype of a."""
    y = torch.empty_like(a)
    swiglu_forward[_grid(a)](a, b, y, a.numel(), **config(arch(a)))
    return y


def launch_swiglu_backward(dy, a, b) -> tuple[torch.Tensor, torch.Tensor]:
    """(da, db), like a and b."""
    da, db = torch.empty_like(a), torch.empty_like(b)
    swiglu_backward[_grid(a)](dy, a, b, da, db, a.numel(), **config(arch(a)))
    return da, db


def launch_relu2(a: torch.Tensor) -> torch.Tensor:
    """max(a, 0)^2, shape and dtype of a."""
    y = torch.empty_like(a)
    relu2_forward[_grid(a)](a, y, a.numel(), **config(arch(a)))
    return y


def launch_relu2_backward(dy: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """The gradient of a, like a."""
    da = torch.empty_like(a)
    relu2_backward[_grid(a)](dy, a, da, a.numel(), **config(arch(a)))
    return da


def _grid(x: torch.Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), config(arch(x))["BLOCK"]),)
