"""Projection and loss in plain torch: the definition that the kernels are tested against."""

import torch
import torch.nn.functional as F


def loss_of_logits(
    logits: torch.Tensor, targets: torch.Tensor, ignore: int, softcap: float, z_loss: float, smoothing: float
) -> torch.Tensor:
    """Summed loss (nats) of (N, V) logits; see `linear_cross_entropy`."""
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    scored = targets != ignore
    lse = logits[scored].logsumexp(-1)
    cross = F.cross_entropy(logits, targets, ignore_index=ignore, reduction="sum", label_smoothing=smoothing)
    return cross + z_loss * lse.square().sum()


def linear_cross_entropy_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ignore: int = -100,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Summed loss (nats) with all (N, V) logits in memory, in the dtype of x, with autograd."""
    return loss_of_logits(x @ weight.T, targets, ignore, softcap, z_loss, smoothing)
