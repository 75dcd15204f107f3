"""RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467), fused with the residual sum before it."""

import torch
import torch.nn.functional as F

from kernels.device import bypasses_dispatcher, decomposes_for_compiler, library, runs_triton
from kernels.norm.reference import rms_norm_reference


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fused residual sum and RMSNorm: h / rms(h) * weight with h = x + residual, in float32.

    Args:
        x: (…, C), any float dtype.
        weight: (C,).
        eps: added to the mean square.
        residual: like x, or None.

    Returns:
        The normalised h, and h, both like x.

    Raises ValueError for invalid shapes, dtypes and devices.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight is {tuple(weight.shape)}, x {tuple(x.shape)}; they must be (C,) and (…, C)")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(f"residual is {residual.dtype} {tuple(residual.shape)}, x {x.dtype} {tuple(x.shape)}")
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}, x on {x.device}")
    if decomposes_for_compiler():
        return rms_norm_reference(x, weight, eps, residual)
    if bypasses_dispatcher(x):
        h = x if residual is None else x + residual
        return F.rms_norm(h, weight.shape, weight, eps), h
    if residual is None:
        return torch.ops.homegrown.rms_norm(x, None, weight, eps)[0], x
    y, h, _ = torch.ops.homegrown.rms_norm(x, residual, weight, eps)
    return y, h


library.define(
    "rms_norm(Tensor x, Tensor? residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "rms_norm_backward(Tensor dy, Tensor? dh, Tensor h, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _forward(x, residual, weight, eps):
    # (y, h, rstd); without a residual h is empty, because an operator must not return its input x.
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    if runs_triton(x):
        from kernels.norm.kernel import launch_norm

        y, h, rstd = launch_norm(x, residual, weight, eps)
    else:
        h = x if residual is None else x + residual
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(h, dim=-1, dtype=wide)
        rstd = torch.rsqrt(length.square() / x.shape[-1] + eps)
        y = (h * rstd[..., None]).mul_(weight).to(x.dtype)
        rstd = rstd.flatten()
    return y, x.new_empty(0) if residual is None else h, rstd


def _backward(dy, dh, h, weight, rstd):
    dy, h = dy.contiguous(), h.contiguous()
    dh = None if dh is None else dh.contiguous()
    if runs_triton(h):
        from kernels.norm.kernel import launch_norm_backward

        return launch_norm_backward(dy, dh, h, weight, rstd)
    wide, C = rstd.dtype, h.shape[-1]
    normal = h.to(wide).view(-1, C) * rstd[:, None]
    g = dy.to(wide).view(-1, C)
    product = g * normal
    dw = product.sum(0)
    mean = product @ (weight.to(wide) / C)
    g = g * weight.to(wide)
    dx = g.sub_(normal.mul_(mean[:, None])).mul_(rstd[:, None]).view(h.shape)
    if dh is not None:
        dx = dx + dh
    return dx.to(h.dtype), dw.to(weight.dtype)


for device in ("CPU", "CUDA"):
    library.impl("rms_norm", _forward, device)
    library.impl("rms_norm_backward", _backward, device)


@torch.library.register_fake("homegrown::rms_norm", lib=library)
def _fake(x, residual, weight, eps):
    h = x.new_empty(0 if residual is None else x.shape)
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), h, x.new_empty(x.numel() // x.shape[-1], dtype=wide)


@torch.library.register_fake("homegrown::rms_norm_backward", lib=library)
def _fake_backward(dy, dh, h, weight, rstd):
    return h.new_empty(h.shape), weight.new_empty(weight.shape)


def _save(ctx, inputs, output) -> None:
    x, residual, weight, _ = inputs
    _, h, rstd = output
    ctx.added = residual is not None
    ctx.save_for_backward(h if ctx.added else x, weight, rstd)
    ctx.mark_non_differentiable(*([rstd] if ctx.added else [h, rstd]))


def _gradients(ctx, dy, dh, _):
    h, weight, rstd = ctx.saved_tensors
    dx, dw = torch.ops.homegrown.rms_norm_backward(dy, dh if ctx.added else None, h, weight, rstd)
    return dx, dx if ctx.added else None, dw, None


torch.library.register_autograd("homegrown::rms_norm", _gradients, setup_context=_save, lib=library)
