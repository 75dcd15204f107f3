"""Split-KV decode attention (Dao et al. 2023, "Flash-Decoding for long-context inference") in Triton.

A program takes the queries of a group together, as rows of one product, and one of SPLITS parts of
the keys of their row. A second kernel combines the parts. Lengths are read on the device: a captured
graph serves rows of any length.
"""

import torch
import triton
import triton.language as tl

from kernels.decode.config import SPLITS, combine_config, config
from kernels.device import arch


@triton.jit
def decode_partial(
    Q, KEY, VALUE, STARTS, POSITIONS, PART, LSE, window, scale,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
):
    """PART (N, H, SPLITS, D) and LSE (N, H, SPLITS) float32; grid (N, K, SPLITS)."""
    n, k, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = H // K
    start = tl.load(STARTS + n)
    end = tl.load(POSITIONS + n).to(tl.int32) + 1
    first = tl.where(window > 0, tl.maximum(end - window, 0), 0)
    share = tl.cdiv(tl.cdiv(end - first, SPLITS), KEYS) * KEYS
    begin = first + split * share
    end = tl.minimum(begin + share, end)
    r, d = tl.arange(0, ROWS), tl.arange(0, DIM)
    heads = (r < GROUP)[:, None] & (d < D)[None, :]
    head = n.to(tl.int64) * H + k * GROUP + r
    q = tl.load(Q + head[:, None] * D + d[None, :], mask=heads, other=0.0)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for at in range(begin, end, KEYS):
        s = at + tl.arange(0, KEYS)
        inside = (s < end)[:, None] & (d < D)[None, :]
        place = ((start + s).to(tl.int64) * K + k)[:, None] * D + d[None, :]
        keys = tl.load(KEY + place, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale
        scores = tl.where((s < end)[None, :], scores, float("-inf"))
        new = tl.maximum(m, tl.max(scores, 1))
        shrink = tl.exp(m - new)
        p = tl.exp(scores - new[:, None])
        total = total * shrink + tl.sum(p, 1)
        values = tl.load(VALUE + place, mask=inside, other=0.0)
        acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
        m = new
    is_empty = total == 0.0
    total = tl.where(is_empty, 1.0, total)
    lse = tl.where(is_empty, float("-inf"), m + tl.log(total))
    out = PART + (head[:, None] * SPLITS + split) * D + d[None, :]
    tl.store(out, acc / total[:, None], mask=heads)
    tl.store(LSE + head * SPLITS + split, lse, mask=r < GROUP)


@triton.jit
def decode_combine(PART, LSE, OUT, D: tl.constexpr, SPLITS: tl.constexpr, DIM: tl.constexpr):
    """OUT (N * H, D); grid (N * H,). At least one part is not empty."""
    head = tl.program_id(0).to(tl.int64)
    part, d = tl.arange(0, SPLITS), tl.arange(0, DIM)
    lse = tl.load(LSE + head * SPLITS + part)
    weight = tl.exp(lse - tl.max(lse, 0))
    weight /= tl.sum(weight, 0)
    inside = (d < D)[None, :]
    parts = tl.load(PART + (head * SPLITS + part)[:, None] * D + d[None, :], mask=inside, other=0.0)
    out = tl.sum(parts * weight[:, None], 0)
    tl.store(OUT + head * D + d, out.to(OUT.dtype.element_ty), mask=d < D)


def launch_decode(q, keys, values, starts, positions, window, scale):
    """(N, H, D), dtype of q; all inputs contiguous."""
    N, H, D = q.shape
    K = keys.shape[1]
    part = torch.empty(N, H, SPLITS, D, dtype=torch.float32, device=q.device)
    lse = torch.empty(N, H, SPLITS, dtype=torch.float32, device=q.device)
    out = torch.empty_like(q)
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    decode_partial[(N, K, SPLITS)](
        q, keys, values, starts, positions, part, lse, window, scale,
        H=H, K=K, D=D, SPLITS=SPLITS, PRECISION=precision, **config(H // K, D, keys.element_size()),
    )
    decode_combine[(N * H,)](part, lse, out, D=D, SPLITS=SPLITS, **combine_config(arch(q), D))
    return out
