"""QK-norm and rotary positions in plain torch: the definition that the kernels are tested against."""

import torch


def rope_reference(x: torch.Tensor, table: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Per-head RMSNorm if `weight` is given, then rotary positions; see `rope`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    h = x.to(wide)
    if weight is not None:
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * weight.to(wide)
        h = h.to(x.dtype).to(wide)
    cos, sin = table[:, None, :, None, :].to(wide).unbind(0)  # (1, T, 1, D/2)
    a, b = h.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
