"""Muon: momentum, orthogonalised, for the matrices inside the blocks.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". The update is scaled
by 0.2 sqrt(max(rows, columns)), which gives it the size of AdamW's, so that one learning rate and
one weight decay serve both (Liu et al. 2025, arXiv:2502.16982, section 2.2).
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from model.fused import newton_schulz
from train.distributed import cut_like

MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose singular values are brought near 1, with decoupled weight decay.

    Each matrix is orthogonalised by one rank, in turn, and sent to the others.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float):
        """`params`: matrices only, in the same order on every rank; ValueError otherwise."""
        params = list(params)
        for p in params:
            if p.dim() != 2:
                raise ValueError(f"params: Muon takes matrices, not a tensor of {tuple(p.shape)}")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        many = dist.is_initialized() and dist.get_world_size() > 1
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
        for group in self.param_groups:
            sent = []
            for i, p in enumerate(p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
                update = p.grad.lerp(momentum, MOMENTUM)
                if isinstance(update, DTensor):
                    update = update.full_tensor()
                # bfloat16 is precise enough for a direction, where the device computes in it.
                update = update.to(torch.bfloat16 if p.is_cuda else torch.float32).contiguous()
                if i % world_size == rank:
                    update = newton_schulz(update).contiguous()
                work = dist.broadcast(update, i % world_size, async_op=True) if many else None
                sent.append((p, update, work))
            for p, update, work in sent:
                if work is not None:
                    work.wait()
                scale = 0.2 * max(p.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(cut_like(update.to(p.dtype), p), alpha=-group["lr"] * scale)
