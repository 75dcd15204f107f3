"""Rotary position embedding (RoPE; Su et al. 2021, arXiv:2104.09864), fused with QK-norm before it.

QK-norm is RMSNorm over each head's dimension (Henry et al. 2020, arXiv:2010.04245, with RMSNorm
instead of the L2 norm). Pairs are (i, i + D/2), the half-split layout of Llama checkpoints.
"""

import torch
import torch.nn.functional as F

from kernels.device import bypasses_dispatcher, decomposes_for_compiler, ensure_unit_stride, library, runs_triton
from kernels.rope.reference import rope_reference


def rope(x: torch.Tensor, table: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-5) -> torch.Tensor:
    """Apply rotary positions to queries or keys, after a per-head RMSNorm if `weight` is given.

    Args:
        x: (B, T, H, D), D even, any strides with a contiguous last dimension.
        table: (2, T, D/2) float32 or float64, cosines and sines of the T positions.
        weight: (D,) gain of the norm, or None for no norm.
        eps: added to the mean square.

    Returns:
        (B, T, H, D) contiguous, dtype of x. `table` has no gradient.

    Raises ValueError for invalid shapes, dtypes and devices.
    """
    if x.dim() != 4 or x.shape[3] % 2:
        raise ValueError(f"x is {tuple(x.shape)}, not (B, T, H, D) with an even D")
    _, T, _, D = x.shape
    if table.shape != (2, T, D // 2) or table.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"table is {table.dtype} {tuple(table.shape)}, not float32 {(2, T, D // 2)}")
    if weight is not None and weight.shape != (D,):
        raise ValueError(f"weight is {tuple(weight.shape)}, not ({D},)")
    for name, other in (("table", table), ("weight", weight)):
        if other is not None and other.device != x.device:
            raise ValueError(f"{name} is on {other.device}, x on {x.device}")
    if decomposes_for_compiler():
        return rope_reference(x, table, weight, eps)
    if bypasses_dispatcher(x):
        return _rope_few_tokens(x, table, weight, eps)
    return torch.ops.homegrown.rope(x, table, weight, eps)


library.define("rope(Tensor x, Tensor table, Tensor? weight, float eps) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
library.define(
    "rope_backward(Tensor dy, Tensor x, Tensor table, Tensor? weight, float eps) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _rope_few_tokens(x, table, weight, eps):
    # Fewer torch calls than the reference: each call costs as much as the computation for a token.
    if weight is not None:
        x = F.rms_norm(x, weight.shape, weight, eps)
    cos, sin = table[:, :, None].unbind(0)  # (T, 1, D/2)
    cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    wide = x.to(cos.dtype)
    return torch.addcmul(wide * cos, wide.roll(wide.shape[-1] // 2, -1), sin).to(x.dtype)


def _forward(x, table, weight, eps):
    if runs_triton(x):
        from kernels.rope.kernel import launch_rope

        return launch_rope(ensure_unit_stride(x), table.contiguous(), weight, eps)
    return rope_reference(x, table, weight, eps).contiguous()


def _backward(dy, x, table, weight, eps):
    if runs_triton(x):
        from kernels.rope.kernel import launch_rope_backward

        return launch_rope_backward(ensure_unit_stride(dy), ensure_unit_stride(x), table.contiguous(), weight, eps)
    # The transpose of a rotation is its inverse.
    inverse = torch.stack([table[0], -table[1]])
    if weight is None:
        return rope_reference(dy, inverse, None, eps).contiguous(), x.new_empty(0)
    wide = torch.promote_types(x.dtype, torch.float32)
    g, h, w = rope_reference(dy.to(wide), inverse, None, eps), x.to(wide), weight.to(wide)
    rstd = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    normal = h * rstd
    dw = (g * normal).sum((0, 1, 2))
    g = g * w
    dx = rstd * (g - normal * (g * normal).mean(-1, keepdim=True))
    return dx.to(x.dtype).contiguous(), dw.to(weight.dtype)


for device in ("CPU", "CUDA"):
    library.impl("rope", _forward, device)
    library.impl("rope_backward", _backward, device)


@torch.library.register_fake("homegrown::rope", lib=library)
def _fake(x, table, weight, eps):
    return x.new_empty(x.shape)


@torch.library.register_fake("homegrown::rope_backward", lib=library)
def _fake_backward(dy, x, table, weight, eps):
    return x.new_empty(x.shape), x.new_empty(0) if weight is None else weight.new_empty(weight.shape)


def _save(ctx, inputs, output) -> None:
    x, table, weight, ctx.eps = inputs
    # Without a norm the gradient does not depend on x.
    ctx.save_for_backward(None if weight is None else x, table, weight)


def _gradients(ctx, dy):
    x, table, weight = ctx.saved_tensors
    dx, dw = torch.ops.homegrown.rope_backward(dy, dy if x is None else x, table, weight, ctx.eps)
    return dx, None, None if weight is None else dw, None


torch.library.register_autograd("homegrown::rope", _gradients, setup_context=_save, lib=library)
