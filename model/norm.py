"""RMSNorm and LayerNorm, each with a variant fused with the residual sum before it."""

import torch
import torch.nn.functional as F
from torch import nn

from model.fused import rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang & Sennrich 2019, arXiv:1910.07467), computed in float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, dim) -> (…, dim), dtype of x."""
        return rms_norm(x, self.weight, self.eps)[0]

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of residual + x, and the sum itself, in one pass; dtype of `residual`."""
        return rms_norm(x.to(residual.dtype), self.weight, self.eps, residual)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight + bias (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, dim) -> (…, dim), dtype of x."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps).to(x.dtype)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RMSNorm.add`."""
        total = residual + x.to(residual.dtype)
        return self(total), total
