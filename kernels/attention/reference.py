"""Attention in plain torch: the definition that the kernels are tested against."""

import math

import torch


def visible(
    T: int, S: int, causal: bool, first: torch.Tensor | None, device: torch.device | None = None
) -> torch.Tensor:
    """Boolean mask (B or 1, T, S): True if the query sees the key.

    `first` (B, T) is the document mask and sliding window. Queries are the last T of S positions.
    """
    query = torch.arange(T, device=device)[:, None] + (S - T)
    key = torch.arange(S, device=device)[None, :]
    seen = (key <= query) if causal else torch.ones(T, S, dtype=torch.bool, device=device)
    return seen[None] if first is None else seen[None] & (key[None] >= first[:, :, None])


def attention_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor | None, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, lse) with the whole (T, S) score matrix in memory, in the dtype of q; see `attention`."""
    B, T, H, D = q.shape
    S, K = k.shape[1:3]
    grouped = q.view(B, T, K, H // K, D)
    scores = torch.einsum("btkgd,bskd->bkgts", grouped, k) * scale  # (B, K, G, T, S)
    hidden = ~visible(T, S, causal, first, q.device)
    scores = scores.masked_fill(hidden[:, None, None], -math.inf)
    o = torch.einsum("bkgts,bskd->btkgd", scores.softmax(-1), v).reshape(B, T, H, D)
    return o, scores.logsumexp(-1).reshape(B, H, T)
