"""All kernels that the model and the optimiser call; no other file of theirs imports `kernels`."""

from collections.abc import Sequence

import torch

from kernels.attention import attention, first_keys
from kernels.decode import decode_attention
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.mlp import relu2, swiglu
from kernels.newton_schulz import newton_schulz
from kernels.norm import rms_norm
from kernels.rope import rope

__all__ = ["attend", "decode_attention", "newton_schulz", "project_and_score", "relu2", "rms_norm", "rope", "swiglu"]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    document_starts: torch.Tensor | None = None,
    prefixes: Sequence[torch.Tensor] = (),
    window: int = 0,
) -> torch.Tensor:
    """Causal softmax attention (Vaswani et al. 2017, section 3.2.1), grouped queries allowed.

    Args:
        q: (B, T, H, D) queries, the last T of S positions.
        k: (B, S, K, D) keys with S >= T; H is a multiple of K.
        v: (B, S, K, D) values.
        document_starts: (B, T) int32, the document mask: the first key that each query sees.
        prefixes: (2, 1, P, K, D) keys and values of shared prompt prefixes (prefix cache), visible
            to all rows and read once for all of them (Juravsky et al. 2024, arXiv:2402.05099,
            section 3.1); without gradients.
        window: sliding window (Beltagy et al. 2020, arXiv:2004.05150, section 3.1): each query sees
            this many keys, its own included; 0: all.

    Returns:
        (B, T, H, D), dtype of q.
    """
    B, T, H, D = q.shape
    if window:
        if prefixes:  # the window reaches back into the prefixes: one row of keys
            earlier = [prefix.expand(-1, B, -1, -1, -1) for prefix in prefixes]
            k, v = (torch.cat([*(each[i] for each in earlier), x], 1) for i, x in enumerate((k, v)))
            prefixes = ()
        first = first_keys(T, k.shape[1], window=window, device=q.device).expand(B, -1)
        document_starts = first if document_starts is None else torch.maximum(first, document_starts)
    if not prefixes:
        return attention(q, k, v, first=document_starts)[0]
    o, lse = attention(q, k, v, first=document_starts)
    parts = [(o.float(), lse)]
    for keys, values in prefixes:  # all rows as one row of queries, without a causal mask
        o, lse = attention(q.reshape(1, B * T, H, D), keys, values, causal=False)
        parts.append((o.view(B, T, H, D).float(), lse.view(H, B, T).transpose(0, 1)))
    weights = torch.stack([lse for _, lse in parts]).softmax(0)  # (parts, B, H, T)
    mixed = sum(o * weight.transpose(1, 2)[..., None] for (o, _), weight in zip(parts, weights, strict=True))
    return mixed.to(q.dtype)


def project_and_score(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross entropy in nats, float32, of x (N, C) projected by weight (V, C); targets (N,).

    The product runs in the dtype of autocast, as a linear layer does.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return linear_cross_entropy(x.to(dtype), weight.to(dtype), targets)[0]
