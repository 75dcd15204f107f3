"""RMSNorm in plain torch: the definition that the kernels are tested against."""

import torch


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm(h), h) with h = x + residual; see `rms_norm`."""
    h = x if residual is None else x + residual
    wide = torch.promote_types(x.dtype, torch.float32)
    normal = h.to(wide) * torch.rsqrt(h.to(wide).square().mean(-1, keepdim=True) + eps)
    return (normal * weight.to(wide)).to(x.dtype), h
