"""Muon: orthogonalised momentum for the hidden matrices of the blocks.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". The update is scaled
by 0.2 sqrt(max(rows, columns)) to match the RMS of AdamW's updates, so that both share one learning
rate and one weight decay (Liu et al. 2025, arXiv:2502.16982, section 2.2).
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from model.fused import newton_schulz
from train.distributed import shard_like

MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with singular values brought near 1, and decoupled weight decay.

    Matrices of one shape are orthogonalised as a batch. Each is computed on one rank, which
    broadcasts it to the others.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype = torch.float32
    ):
        """`params` are matrices, in the same order on every rank; raises ValueError for other shapes.

        `dtype` is that of the matrix products; bfloat16 is precise enough for an update direction.
        """
        params = list(params)
        for p in params:
            if p.dim() != 2:
                raise ValueError(f"params: Muon takes matrices, not a tensor of {tuple(p.shape)}")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, alike in shapes.items():
                scale = 0.2 * max(shape) ** 0.5
                updates = orthogonalise(torch.stack([self._direction(p) for p in alike]))
                for p, update in zip(alike, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(shard_like(update.to(p.dtype), p), alpha=-group["lr"] * scale)

    def step_flops(self) -> float:
        """FLOPs of the matrix products in one step, summed over all ranks."""
        sides = [sorted(p.shape) for group in self.param_groups for p in group["params"]]
        return float(sum(NEWTON_SCHULZ_STEPS * (m * (m + 1) * (k + m) + 2 * m * m * k) for m, k in sides))

    def _direction(self, p: nn.Parameter) -> torch.Tensor:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
        direction = p.grad.lerp(momentum, MOMENTUM)
        if isinstance(direction, DTensor):
            direction = direction.full_tensor()
        return direction.to(self.dtype)


def orthogonalise(stack: torch.Tensor) -> torch.Tensor:
    """`newton_schulz` of an (N, R, C) stack that all ranks hold; each rank computes a share."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return newton_schulz(stack, NEWTON_SCHULZ_STEPS)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    shares = [stack[i::world_size].contiguous() for i in range(world_size)]
    if len(shares[rank]):
        shares[rank] = newton_schulz(shares[rank], NEWTON_SCHULZ_STEPS).contiguous()
    sent = [dist.broadcast(share, i, async_op=True) for i, share in enumerate(shares) if len(share)]
    for i, (share, work) in enumerate(zip(shares, sent, strict=False)):
        work.wait()
        stack[i::world_size] = share
    return stack
