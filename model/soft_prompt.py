"""Learnt vectors that stand before every text."""

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


def pad_front(x: torch.Tensor | None, count: int) -> torch.Tensor | None:
    """(B, T, C) with `count` positions of zeros before it."""
    return x if x is None or not count else nn.functional.pad(x, (0, 0, count, 0))
