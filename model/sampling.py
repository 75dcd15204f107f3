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


class Samplings(NamedTuple):
    """The settings of N rows as tensors (N,): one field per field of `Sampling`."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


def draw_tokens(logits: Tensor, settings: Samplings, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """`draw_token` of N rows, without a host sync, so that a captured graph can hold it.

    Args:
        logits: (N, V), any float dtype.
        settings: of each row.
        uniform: (N,) in [0, 1).

    Returns:
        (N,) int64 ids; (N,) bool, False where more than the FIRST likeliest tokens are needed: that
        row has to be drawn by `draw_token`.
    """
    temperature, top_p, min_p = (each.float() for each in (settings.temperature, settings.top_p, settings.min_p))
    is_greedy = temperature == 0
    divisor = temperature.masked_fill(is_greedy, 1.0)
    probabilities = torch.softmax(logits.float() / divisor[:, None], -1)
    kept, ids = probabilities.topk(min(FIRST, logits.shape[1]))
    least = (min_p * kept[:, 0])[:, None]
    inside = (kept.cumsum(-1) - kept) < top_p[:, None]
    inside[:, 0] = True
    has_k = settings.top_k > 0
    inside &= (torch.arange(kept.shape[1], device=kept.device) < settings.top_k[:, None]) | ~has_k[:, None]
    is_limited = has_k | (top_p < 1)
    limited = _pass_uniform(kept * inside * (kept >= least), uniform)
    unlimited = _pass_uniform(probabilities * (probabilities >= least), uniform)
    drawn = torch.where(is_limited, ids.gather(1, limited)[:, 0], unlimited[:, 0])
    is_exact = is_greedy | ~is_limited | ~inside[:, -1] | (settings.top_k == kept.shape[1])
    if kept.shape[1] == logits.shape[1]:
        is_exact = torch.ones_like(is_exact)
    return torch.where(is_greedy, logits.argmax(-1), drawn), is_exact


def _pass_uniform(weights: Tensor, uniform: Tensor) -> Tensor:
    # (N, 1): where the cumulative distribution of (N, V) weights passes `uniform` (N,).
    cumulative = weights.double().cumsum(-1)
    found = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return found.clamp(max=weights.shape[1] - 1)


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
