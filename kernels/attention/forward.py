"""The forward kernel: an online softmax of one tile of queries over all keys visible to it.

FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithm 1) with grouped heads, a lower bound of
visible keys per query (document mask and sliding window in one vector). kernels/attention/tiles.py defines the names.
"""

import triton
import triton.language as tl

from kernels.attention.tiles import LN2, LOG2E, load, seen, store, visible_keys


@triton.jit
def _over_keys(
    state, q, k, v, batch, head, begin, end, first, last, scale,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, BOUNDED: tl.constexpr,
    DESCRIPTOR: tl.constexpr, PRECISION: tl.constexpr,
):
    # Online softmax over keys begin..end; row i sees first[i] to last[i]. Only tiles at an edge
    # are MASKED: unmasked tiles are faster and most frequent.
    acc, total, top = state
    for n in tl.range(begin, end, N):
        keys = load(k, batch, n, head, D, DP, N, DESCRIPTOR)
        s = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * (scale * LOG2E)  # (M, N)
        if MASKED:
            s = tl.where(seen(n, k[1][3], first, last, N, CAUSAL, BOUNDED), s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        # A row without a visible key so far has top = -inf, and -inf - -inf is NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        values = load(v, batch, n, head, D, DP, N, DESCRIPTOR)
        acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
        top = higher
    return acc, total, top


@triton.jit
def forward(
    Q, q, K, k, V, v, OUT, o, LSE, FIRST, H, group, scale,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, BOUNDED: tl.constexpr,
    DESCRIPTOR: tl.constexpr, PRECISION: tl.constexpr,
):
    """Write o (B, T, H, D) and LSE (B, H, T), natural log; grid (tiles of M queries, B * H).

    FIRST (B, T) int32 is the first key that each query sees; non-decreasing along T.
    """
    q, k, v, o = (Q, q), (K, k), (V, v), (OUT, o)
    T, S = q[1][3], k[1][3]
    # The last tiles see the most keys: they start first, so that no long one remains at the end.
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    batch, head = tl.program_id(1) // H, tl.program_id(1) % H
    rows = row + tl.arange(0, M)
    first, last, begin, full_begin, full_end, end = visible_keys(
        FIRST, batch, row, T, S, M, N, CAUSAL, BOUNDED
    )

    queries = load(q, batch, row, head, D, DP, M, DESCRIPTOR)
    kv_head = head // group
    state = (
        tl.zeros([M, DP], tl.float32),
        tl.zeros([M], tl.float32),
        tl.full([M], float("-inf"), tl.float32),
    )
    if BOUNDED:
        state = _over_keys(
            state, queries, k, v, batch, kv_head, begin, full_begin, first, last, scale,
            D, DP, N, True, CAUSAL, True, DESCRIPTOR, PRECISION,
        )
    state = _over_keys(
        state, queries, k, v, batch, kv_head, full_begin, full_end, first, last, scale,
        D, DP, N, False, CAUSAL, BOUNDED, DESCRIPTOR, PRECISION,
    )
    state = _over_keys(
        state, queries, k, v, batch, kv_head, full_end, end, first, last, scale,
        D, DP, N, True, CAUSAL, BOUNDED, DESCRIPTOR, PRECISION,
    )
    acc, total, top = state
    store(o, batch, row, head, acc / total[:, None], D, DP, M)
    lse = LSE + (batch * H + head).to(tl.int64) * T
    tl.store(lse + rows, (top + tl.log2(total)) * LN2, mask=rows < T)
