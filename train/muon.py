"""Muon: orthogonalised momentum for the hidden matrices of the blocks.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". The update is scaled
by 0.2 sqrt(max(rows, columns)) to match the RMS of AdamW's updates, so that both share one learning
rate and one weight decay (Liu et al. 2025, arXiv:2502.16982, section 2.2).
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from model.fused import newton_schulz
from train.sharding import is_sharded, local, part_like, shard_like, whole

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
        self.found_inf = torch.zeros(())
        self._stacks: dict[torch.Size, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient, unless the device finds `self.found_inf` to be 1."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for alike in shapes.values():
                self._update(alike, group["lr"], group["weight_decay"])

    def _update(self, alike: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        # All matrices of one shape in a dozen launches; `keep` is 0 or 1, on the device.
        keep = 1 - self.found_inf.to(alike[0].device)
        gradients = torch.stack([local(p.grad) for p in alike])  # type: ignore[arg-type]
        gradients = gradients.where(keep > 0, 0)
        momentum = self._momentum(alike).lerp_(gradients, (1 - MOMENTUM) * keep)
        directions = gradients.lerp(momentum, MOMENTUM)
        if is_sharded(alike[0]):
            directions = torch.stack([whole(part_like(d, p)) for d, p in zip(directions, alike, strict=True)])
        scale = 0.2 * max(alike[0].shape) ** 0.5
        updates = orthogonalise(directions.to(self.dtype)).to(alike[0].dtype) * (-lr * scale * keep)
        weights = [local(p) for p in alike]
        torch._foreach_mul_(weights, 1 - lr * weight_decay * keep)
        torch._foreach_add_(weights, [local(shard_like(u, p)) for u, p in zip(updates, alike, strict=True)])

    def _momentum(self, alike: list[nn.Parameter]) -> torch.Tensor:
        # The momentum of these matrices as one stack, of which each one's state is a view. A
        # checkpoint replaces the states: then they are stacked again.
        stack, views = self._stacks.get(alike[0].shape, (None, []))
        states = [self.state[p] for p in alike]
        if stack is None or [id(state.get("momentum")) for state in states] != [id(view) for view in views]:
            kept = [state["momentum"] if state else torch.zeros_like(p) for state, p in zip(states, alike, strict=True)]
            stack = torch.stack([local(x) for x in kept])
            views = [part_like(x, p) for x, p in zip(stack, alike, strict=True)]
            for state, view in zip(states, views, strict=True):
                state["momentum"] = view
            self._stacks[alike[0].shape] = stack, views
        return stack

    def step_flops(self) -> float:
        """FLOPs of the matrix products in one step, summed over all ranks."""
        sides = [sorted(p.shape) for group in self.param_groups for p in group["params"]]
        return float(sum(NEWTON_SCHULZ_STEPS * (m * (m + 1) * (k + m) + 2 * m * m * k) for m, k in sides))


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
