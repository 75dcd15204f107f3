"""Projection and loss in plain torch: the definition that the kernels are tested against."""

import torch
import torch.nn.functional as F


def linear_cross_entropy_reference(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, ignore: int = -100
) -> torch.Tensor:
    """Summed loss (nats) with all (N, V) logits in memory, in the dtype of x, with autograd."""
    return F.cross_entropy(x @ weight.T, targets, ignore_index=ignore, reduction="sum")
