"""Activations in plain torch: the definitions that the kernels are tested against."""

import torch
import torch.nn.functional as F


def swiglu_reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """silu(a) * b; see `swiglu`."""
    return F.silu(a) * b


def relu2_reference(a: torch.Tensor) -> torch.Tensor:
    """max(a, 0)^2; see `relu2`."""
    return F.relu(a).square()
