"""Soft prompts: trained vectors before every text."""

import torch
from torch import nn


class SoftPrompt(nn.Module):
    """Prompt tuning (Lester et al. 2021, arXiv:2104.08691): `tokens` vectors of width `dim`."""

    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(tokens, dim))

    def forward(self) -> torch.Tensor:
        """(tokens, dim)."""
        return self.vectors

    def prepend(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, dim) -> (B, tokens + T, dim)."""
        return torch.cat([self().to(x.dtype).expand(len(x), -1, -1), x], 1)
