"""Decode attention in plain torch: the definition that the kernel is tested against."""

import torch


def decode_attention_reference(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    positions: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """One query at a time; see `decode_attention`."""
    _, H, D = q.shape
    K, out = keys.shape[1], torch.empty_like(q)
    for n, (start, position) in enumerate(zip(starts.tolist(), positions.tolist(), strict=True)):
        first = max(0, position - window + 1) if window else 0
        k, v = (each[start + first : start + position + 1].to(q.dtype) for each in (keys, values))  # (S, K, D)
        scores = torch.einsum("krd,skd->krs", q[n].view(K, H // K, D), k) * D**-0.5
        out[n] = torch.einsum("krs,skd->krd", scores.softmax(-1), v).reshape(H, D)
    return out
