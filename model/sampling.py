"""Draw the next token from logits: temperature, top-k, top-p, min-p."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sampling(NamedTuple):
    """How a row draws its tokens."""

    temperature: float = 1.0
    """0 takes the likeliest token (greedy) and ignores the other settings."""
    top_k: int = 0
    """Keep exactly the k likeliest tokens, even among ties; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens with this probability mass (nucleus sampling;
    Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Drop tokens below this fraction of the highest probability (Nguyen et al. 2024)."""


FIRST = 256  # likeliest tokens among which a nucleus is looked for before all are sorted


def draw_token(logits: Tensor, sampling: Sampling, uniform: float) -> int:
    """The token at which the cumulative distribution passes `uniform`, in [0, 1).

    `logits`: (V,), any float dtype. The same `uniform` gives the same token, whatever other rows do.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / sampling.temperature, -1)
    if sampling.top_k or sampling.top_p < 1:
        probabilities, ids = _likeliest(probabilities, sampling)
    else:
        ids = None
    if sampling.min_p:
        probabilities = probabilities * (probabilities >= sampling.min_p * probabilities.max())
    cumulative = probabilities.double().cumsum(-1)
    index = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp(max=len(cumulative) - 1))
    return index if ids is None else int(ids[index])


def _likeliest(probabilities: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    # Without a sort of the vocabulary, unless the nucleus is large.
    count = sampling.top_k or FIRST
    while True:
        kept, ids = probabilities.topk(min(count, len(probabilities)))
        before = kept.cumsum(-1) - kept
        inside = before < sampling.top_p
        inside[0] = True
        if sampling.top_k or not inside[-1] or len(kept) == len(probabilities):
            return kept * inside, ids
        count = len(probabilities)
