"""Decode attention in plain torch: the definition that the kernel is tested against."""

import torch


def decode_attention_reference(
    q: torch.Tensor, kv: torch.Tensor, starts: torch.Tensor, positions: torch.Tensor, window: int
) -> torch.Tensor:
    """One query at a time; see `decode_attention`."""
    _, H, D = q.shape
    K, out = kv.shape[2], torch.empty_like(q)
    for n, (start, position) in enumerate(zip(starts.tolist(), positions.tolist(), strict=True)):
        first = max(0, position - window + 1) if window else 0
        keys, values = kv[:, start + first : start + position + 1].to(q.dtype)  # (S, K, D)
        scores = torch.einsum("krd,skd->krs", q[n].view(K, H // K, D), keys) * D**-0.5
        out[n] = torch.einsum("krs,skd->krd", scores.softmax(-1), values).reshape(H, D)
    return out
