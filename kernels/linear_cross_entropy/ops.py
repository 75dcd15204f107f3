"""Fused output projection and cross entropy: only one chunk of tokens has logits in memory.

The forward pass computes the gradients, chunk by chunk, like the Liger kernel (Hsu et al. 2024,
arXiv:2410.10989, section 3.2): the loss is the last operation of a model, so its gradient is known
up to a factor, and no logits are stored or computed twice. The matrix products use the library; the
loss and its gradient use a Triton kernel on a GPU and torch on a CPU.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from kernels.device import library, runs_triton

CHUNK_BYTES = 1 << 28  # default size of the logits of one chunk
CPU_CHUNK = 512  # most tokens per chunk on a CPU: logits of a small vocabulary stay in the cache


def linear_cross_entropy(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, ignore_index: int = -100, chunk: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy (nats) of softmax(x W^T), and the number of scored targets.

    Args:
        x: (N, C) hidden states; bfloat16, float16 or float32.
        weight: (V, C), dtype of x.
        targets: (N,) int64.
        ignore_index: targets with this value are not scored.
        chunk: tokens per chunk of logits; 0 uses as many as fit in 256 MiB, on a CPU at most 512.

    Returns:
        The sum, float32, and the count, int64; only the sum has a gradient. The gradient of
        `weight` is summed in float32 over chunks. Second derivatives are not supported.

    Raises ValueError for invalid shapes, dtypes, devices and values.
    """
    _check(x, weight, targets, chunk)
    grad = torch.is_grad_enabled()
    if not chunk:
        chunk = max(1, CHUNK_BYTES // (weight.shape[0] * x.element_size()))
        chunk = chunk if x.is_cuda else min(chunk, CPU_CHUNK)
    loss, _, _ = torch.ops.homegrown.linear_cross_entropy(
        x, weight, targets, ignore_index, chunk, grad and x.requires_grad, grad and weight.requires_grad
    )
    return loss, (targets != ignore_index).sum()


def _check(x, weight, targets, chunk) -> None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        shapes = f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(f"{shapes}; they must be (N, C) and (V, C)")
    if x.dtype != weight.dtype or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}, weight {weight.dtype}; they must have the same float dtype")
    if targets.shape != x.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype} {tuple(targets.shape)}, not int64 ({x.shape[0]},)")
    if not x.device == weight.device == targets.device:
        raise ValueError(f"x is on {x.device}, weight on {weight.device}, targets on {targets.device}")
    if chunk < 0:
        raise ValueError(f"chunk = {chunk} is negative")


library.define(
    "linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, int ignore_index, int chunk, "
    "bool need_dx, bool need_dw) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _compute(x, weight, targets, ignore, *settings):
    # On a GPU the kernel skips ignored rows; on a CPU their logits are not computed either, which a
    # GPU could not know without waiting for the device.
    scored = targets != ignore
    if runs_triton(x) or scored.all():
        return _all_rows(x, weight, targets, ignore, *settings)
    loss, dx, dw = _all_rows(x[scored], weight, targets[scored], ignore, *settings)
    if settings[-2]:
        dx = torch.zeros_like(x).masked_scatter_(scored[:, None], dx)
    return loss, dx, dw


def _all_rows(x, weight, targets, ignore, chunk, need_dx, need_dw):
    N, V = len(x), len(weight)
    loss = torch.zeros((), dtype=torch.float32, device=x.device)
    dx = torch.zeros_like(x) if need_dx else x.new_empty(0)
    dw = torch.zeros_like(weight, dtype=torch.float32) if need_dw else weight.new_empty(0)
    buffer = x.new_empty(min(chunk, N), V)
    plain = not runs_triton(x)
    # One buffer for all chunks: on a CPU, allocating per chunk costs as much as the passes over it.
    wide = buffer.float() if plain and x.dtype != torch.float32 else buffer
    for start in range(0, N, chunk):
        rows, labels = x[start : start + chunk], targets[start : start + chunk]
        logits = torch.mm(rows, weight.T, out=buffer[: len(rows)])
        if plain:
            loss += _torch_cross_entropy(logits, wide[: len(rows)], labels, need_dx or need_dw)
        else:
            from kernels.linear_cross_entropy.kernel import launch_cross_entropy

            loss += launch_cross_entropy(logits, labels, ignore, need_dx or need_dw).sum()
        if need_dx:
            torch.mm(logits, weight, out=dx[start : start + chunk])
        if need_dw and x.dtype == torch.float32:
            dw.addmm_(logits.T, rows)
        elif need_dw:
            dw += logits.T @ rows
    return loss, dx, dw.to(weight.dtype)


def _torch_cross_entropy(logits, z, targets, gradient):
    # The loss summed over rows, all scored; with `gradient`, the gradient overwrites the logits. z is a float32
    # buffer of the same shape, or the logits themselves.
    if z.data_ptr() != logits.data_ptr():
        z.copy_(logits)
    labels = targets[:, None]
    label_logits, top = z.gather(1, labels)[:, 0], z.amax(1)
    # torch's softmax is one pass; the largest probability is 1 / (sum of exponentials).
    p = torch.softmax(z, 1, out=z)
    lse = top - p.amax(1).log_()
    loss = lse - label_logits
    if gradient:
        p.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=p.dtype))
        if p.data_ptr() != logits.data_ptr():
            logits.copy_(p)
    return loss.sum()


for device in ("CPU", "CUDA"):
    library.impl("linear_cross_entropy", _compute, device)


@torch.library.register_fake("homegrown::linear_cross_entropy", lib=library)
def _fake(x, weight, targets, ignore, chunk, need_dx, need_dw):
    dx = x.new_empty(x.shape if need_dx else 0)
    dw = weight.new_empty(weight.shape if need_dw else 0)
    return x.new_empty((), dtype=torch.float32), dx, dw


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.needs = inputs[-2:]
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx, grad, *_):
    dx, dw = (
        gradient * grad.to(gradient.dtype) if needed else None
        for gradient, needed in zip(ctx.saved_tensors, ctx.needs, strict=True)
    )
    return dx, dw, *[None] * 5


torch.library.register_autograd("homegrown::linear_cross_entropy", _gradients, setup_context=_save, lib=library)


@register_flop_formula(torch.ops.homegrown.linear_cross_entropy, get_raw=True)
def _flops(x, weight, targets, ignore, *settings, **_) -> int:
    """One product for the logits and one per requested gradient, of the rows that are computed."""
    rows = len(x) if runs_triton(x) else int((targets != ignore).sum())
    return 2 * rows * weight.numel() * (1 + sum(settings[-2:]))
