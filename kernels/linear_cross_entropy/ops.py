"""Output projection and cross entropy in one: the logits exist for one chunk of tokens at a time.

The gradients are made in the forward pass, chunk by chunk, as the Liger kernel does (Hsu et al.
2024, arXiv:2410.10989, section 3.2): the loss is the last thing a model computes, so its gradient
is known but for a factor, and no logits need be kept or computed twice. The products are the
library's; the loss and its gradient are a Triton kernel on a GPU and torch on a CPU.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from kernels.device import library, runs_triton

CHUNK_BYTES = 1 << 28  # of logits at a time where nothing else is asked
CPU_CHUNK = 512  # tokens, if that is less: a chunk of a small vocabulary then stays in cache


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    ignore_index: int = -100,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy of softmax(x W^T), and how many targets were scored.

    Args:
        x: (N, C) hidden states; bfloat16, float16 or float32.
        weight: (V, C), dtype of x.
        targets: (N,) int64.
        ignore_index: a target of this value is not scored.
        softcap: logits become softcap * tanh(logit / softcap) (Gemma 2); 0 is none.
        z_loss: adds z_loss * logsumexp(logits)^2 per token (PaLM, arXiv:2204.02311, section 5).
        label_smoothing: this much of the target is spread over the vocabulary.
        chunk: tokens whose logits are held at once; 0 takes as many as 256 MiB hold, on a CPU at
            most 512.

    Returns:
        The sum, float32, and the count, int64; only the sum has a gradient. The gradient of
        `weight` is summed in float32 over chunks. Second derivatives are not provided.

    Raises ValueError for shapes, dtypes, devices and values that do not fit.
    """
    _check(x, weight, targets, softcap, z_loss, label_smoothing, chunk)
    grad = torch.is_grad_enabled()
    if not chunk:
        chunk = max(1, CHUNK_BYTES // (weight.shape[0] * x.element_size()))
        chunk = chunk if x.is_cuda else min(chunk, CPU_CHUNK)
    loss, _, _ = torch.ops.homegrown.linear_cross_entropy(
        x,
        weight,
        targets,
        ignore_index,
        softcap,
        z_loss,
        label_smoothing,
        chunk,
        grad and x.requires_grad,
        grad and weight.requires_grad,
    )
    return loss, (targets != ignore_index).sum()


def _check(x, weight, targets, softcap, z_loss, smoothing, chunk) -> None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        shapes = f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(f"{shapes}; they must be (N, C) and (V, C)")
    if x.dtype != weight.dtype or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}, weight {weight.dtype}; they must be the same float")
    if targets.shape != x.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype} {tuple(targets.shape)}, not int64 ({x.shape[0]},)")
    if not x.device == weight.device == targets.device:
        raise ValueError(f"x is on {x.device}, weight on {weight.device}, targets on {targets.device}")
    for name, value in (("softcap", softcap), ("z_loss", z_loss), ("chunk", chunk)):
        if value < 0:
            raise ValueError(f"{name} = {value} is negative")
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing = {smoothing} is not in [0, 1)")


library.define(
    "linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, int ignore_index, "
    "float softcap, float z_loss, float smoothing, int chunk, bool need_dx, bool need_dw) "
    "-> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _compute(x, weight, targets, ignore, softcap, z_loss, smoothing, chunk, need_dx, need_dw):
    N, V = len(x), len(weight)
    loss = torch.zeros((), dtype=torch.float32, device=x.device)
    dx = torch.zeros_like(x) if need_dx else x.new_empty(0)
    dw = torch.zeros_like(weight, dtype=torch.float32) if need_dw else weight.new_empty(0)
    buffer = x.new_empty(min(chunk, N), V)
    plain = not runs_triton(x)
    # Memory that is new for every chunk would cost a CPU as much as the passes over it.
    wide = buffer.float() if plain and x.dtype != torch.float32 else buffer
    for start in range(0, N, chunk):
        rows, labels = x[start : start + chunk], targets[start : start + chunk]
        logits = torch.mm(rows, weight.T, out=buffer[: len(rows)])
        settings = (labels, ignore, softcap, z_loss, smoothing, need_dx or need_dw)
        if plain:
            loss += _torch_cross_entropy(logits, wide[: len(rows)], *settings)
        else:
            from kernels.linear_cross_entropy.kernel import launch_cross_entropy

            loss += launch_cross_entropy(logits, *settings).sum()
        if need_dx:
            torch.mm(logits, weight, out=dx[start : start + chunk])
        if need_dw and x.dtype == torch.float32:
            dw.addmm_(logits.T, rows)
        elif need_dw:
            dw += logits.T @ rows
    return loss, dx, dw.to(weight.dtype)


def _torch_cross_entropy(logits, z, targets, ignore, softcap, z_loss, smoothing, gradient):
    # The loss summed over rows; with `gradient` it is written over the logits. z is room for them
    # in float32, or themselves.
    V = logits.shape[1]
    if z.data_ptr() != logits.data_ptr():
        z.copy_(logits)
    t = None
    if softcap:
        t = z.div_(softcap).tanh_()
        z = t * softcap
    scored = targets != ignore
    right = targets.where(scored, 0)[:, None]
    right_logit, top = z.gather(1, right)[:, 0], z.amax(1)
    smooth = smoothing * z.mean(1) if smoothing else 0.0
    # torch's softmax is one pass; the largest probability is one over the sum of exponentials.
    p = torch.softmax(z, 1, out=z)
    lse = top - p.amax(1).log_()
    loss = lse - (1 - smoothing) * right_logit - smooth + z_loss * lse.square()
    if gradient:
        g = p
        if z_loss:
            g.mul_((1 + 2 * z_loss * lse)[:, None])
        if smoothing:
            g.sub_(smoothing / V)
        g.scatter_add_(1, right, torch.full_like(right, smoothing - 1, dtype=g.dtype))
        if t is not None:
            g.mul_(1 - t.square())
        if not scored.all():
            g.mul_(scored[:, None])
        if g.data_ptr() != logits.data_ptr():
            logits.copy_(g)
    return loss.where(scored, 0).sum()


for device in ("CPU", "CUDA"):
    library.impl("linear_cross_entropy", _compute, device)


@torch.library.register_fake("homegrown::linear_cross_entropy", lib=library)
def _fake(x, weight, targets, ignore, softcap, z_loss, smoothing, chunk, need_dx, need_dw):
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
    return dx, dw, *[None] * 8


torch.library.register_autograd("homegrown::linear_cross_entropy", _gradients, setup_context=_save, lib=library)


@register_flop_formula(torch.ops.homegrown.linear_cross_entropy)
def _flops(x, weight, targets, *settings, **_) -> int:
    """One product forward, and one for each gradient that is asked for."""
    return 2 * x[0] * x[1] * weight[0] * (1 + sum(settings[-2:]))
