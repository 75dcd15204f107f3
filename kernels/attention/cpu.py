"""Attention on a CPU: torch's fused kernel, on all queries at once or per block of queries.

It never allocates a T x S mask or score matrix.
"""

from collections.abc import Iterator

import torch

from kernels.attention.reference import visible

ROWS = 256  # queries per block: few compared to a long window, enough for an efficient product
# torch's bfloat16 backward pass takes three times as long as its forward pass. Up to SHORT positions,
# plain products on SHORT_ROWS queries at a time are faster (docs/log.md).
SHORT, SHORT_ROWS = 1024, 64
_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of scores and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


Bounds = torch.Tensor | None


def cpu_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: Bounds, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, lse) as `launch_forward` returns them."""
    if _needs_no_mask(q, k, first, causal):
        if q.shape[1] == 1:  # decode: a group's queries become rows of one head, so keys need no copy
            group = q.view(q.shape[0], k.shape[2], -1, q.shape[3])
            o, lse = _fused(group, k.transpose(1, 2), v.transpose(1, 2), scale=scale)
            return o.reshape(q.shape), lse.reshape(q.shape[0], -1, 1)
        heads = (_expand_heads(x, q) for x in (q, k, v))
        o, lse = _fused(*heads, is_causal=causal and q.shape[1] > 1, scale=scale)
        return o.transpose(1, 2).contiguous(), lse.contiguous()
    B, T, H, _ = q.shape
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(B, H, T, dtype=accumulation_dtype(q.dtype), device=q.device)
    for rows, keys, mask in _query_blocks(q, k, first, causal):
        heads = (_expand_heads(x, q) for x in (q[:, rows], k[:, keys], v[:, keys]))
        part, lse[:, :, rows] = _fused(*heads, attn_mask=mask, scale=scale)
        o[:, rows] = part.transpose(1, 2)
    return o, lse


def cpu_backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    first: Bounds,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """(dq, dk, dv) as `launch_backward` returns them."""
    if _needs_no_mask(q, k, first, causal):
        if causal and q.dtype == torch.bfloat16 and 1 < q.shape[1] <= SHORT:
            return _short_backward(do, q, k, v, scale)
        heads = (_expand_heads(x, q) for x in (do, q, k, v, o))
        parts = _fused_backward(*heads, lse, 0.0, causal and q.shape[1] > 1, scale=scale)
        grads = map(_sum_groups, parts, (q, k, v))
        return tuple(x.to(q.dtype).contiguous() for x in grads)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros(x.shape, dtype=accumulation_dtype(x.dtype), device=x.device) for x in (k, v))
    for rows, keys, mask in _query_blocks(q, k, first, causal):
        band = (do[:, rows], q[:, rows], k[:, keys], v[:, keys], o[:, rows])
        heads = (_expand_heads(x, q) for x in band)
        part_lse = lse[:, :, rows].contiguous()
        parts = _fused_backward(*heads, part_lse, 0.0, False, attn_mask=mask, scale=scale)
        dq[:, rows] = parts[0].transpose(1, 2)
        dk[:, keys] += _sum_groups(parts[1], k)
        dv[:, keys] += _sum_groups(parts[2], v)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _short_backward(
    do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, ...]:
    # Causal, T = S. The queries of a group are stacked as rows, so keys need no copies.
    B, T, H, D = q.shape
    K = k.shape[2]
    G = H // K
    qs, dos = (x.view(B, T, K, G, D).permute(0, 2, 3, 1, 4) for x in (q, do))
    k, v = (x.transpose(1, 2).reshape(B * K, T, D) for x in (k, v))
    dq = torch.empty_like(qs, memory_format=torch.contiguous_format)  # (B, K, G, T, D)
    dk, dv = torch.zeros(2, B * K, T, D, dtype=torch.float32, device=q.device)
    hidden = torch.full((SHORT_ROWS, T), float("-inf"), dtype=q.dtype, device=q.device)
    for start in range(0, T, SHORT_ROWS):
        end = min(T, start + SHORT_ROWS)
        rows, seen, shape = slice(start, end), slice(0, end), (B * K, G * (end - start), D)
        part_q, part_do = qs[:, :, :, rows].reshape(shape), dos[:, :, :, rows].reshape(shape)
        mask = hidden[: end - start, :end].triu(start + 1).repeat(G, 1)
        # baddbmm adds the mask and scales before it rounds.
        s = torch.baddbmm(mask, part_q, k[:, seen].mT, alpha=scale)
        p = s.softmax(-1)
        ds = torch._softmax_backward_data(part_do @ v[:, seen].mT, p, -1, p.dtype)
        part = torch.baddbmm(part_q, ds, k[:, seen], beta=0, alpha=scale)
        dq[:, :, :, rows] = part.view(B, K, G, -1, D)
        dk[:, seen] += ds.mT @ part_q
        dv[:, seen] += p.mT @ part_do
    dq = dq.permute(0, 3, 1, 2, 4).reshape(B, T, H, D).contiguous()
    back = (x.view(B, K, T, D).transpose(1, 2).to(q.dtype).contiguous() for x in (dk * scale, dv))
    return dq, *back


def _needs_no_mask(q: torch.Tensor, k: torch.Tensor, first: Bounds, causal: bool) -> bool:
    # Whether torch's kernel works without a mask; a single query sees all keys, causal or not.
    T, S = q.shape[1], k.shape[1]
    return first is None and (not causal or T in (1, S))


def _query_blocks(
    q: torch.Tensor, k: torch.Tensor, first: Bounds, causal: bool
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    # For each block of queries: its rows, the keys that any row sees, the additive mask.
    T, S = q.shape[1], k.shape[1]
    for start in range(0, T, ROWS):
        rows = slice(start, min(start + ROWS, T))
        begin = int(first[:, start].min()) if first is not None else 0
        end = min(S, rows.stop + S - T) if causal else S
        lower = None if first is None else first[:, rows] - begin
        width = end - begin
        # If causal, the last query of the block has the position of the last key.
        seen = visible(rows.stop - start, width, causal, lower, q.device)[:, None]
        mask = torch.zeros(seen.shape, dtype=q.dtype, device=q.device)
        yield rows, slice(begin, end), mask.masked_fill_(~seen, float("-inf"))


def _expand_heads(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    # (B, rows, K, D) -> (B, H, rows, D): torch's kernel needs as many heads in k and v as in q.
    group = q.shape[2] // x.shape[2]
    return (x if group == 1 else x.repeat_interleave(group, 2)).transpose(1, 2)


def _sum_groups(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    # The inverse for gradients, summed over the queries of a group: (B, H, rows, D) -> (B, rows, K, D).
    x, heads = x.transpose(1, 2), like.shape[2]
    return x if x.shape[2] == heads else x.unflatten(2, (heads, -1)).sum(3, dtype=accumulation_dtype(x.dtype))
