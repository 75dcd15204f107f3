"""The one seam between the model and whatever computes attention."""

import torch
import torch.nn.functional as F


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal softmax attention (Vaswani et al. 2017, section 3.2.1), grouped queries allowed.

    Args:
        q: (B, T, H, D) queries, the last T of S positions.
        k: (B, S, K, D) keys with S >= T; H is a multiple of K.
        v: (B, S, K, D) values.

    Returns:
        (B, T, H, D), dtype of q.
    """
    T, S = q.shape[1], k.shape[1]
    if q.shape[2] != k.shape[2] and q.device.type == "cpu":
        # The fused CPU kernel takes equal heads only; without this, torch builds T x S scores.
        groups = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    mask = None
    if 1 < T < S:  # a chunk after a cached prefix: query i sees keys up to S - T + i
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=T == S and T > 1,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
