"""The backward kernels: gradients of q, k and v from that of o, with recomputed probabilities.

FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithm 2). The kernel for dk and dv holds tiles of
scores transposed, (keys, queries), so that both of its products read their left operand from
registers. A second kernel computes dq: 7 matrix products per tile in total instead of 5, but no
atomic additions, so every sum has a fixed order. kernels/attention/tiles.py defines the names.
"""

import triton
import triton.language as tl

from kernels.attention.tiles import LOG2E, load, seen, store, visible_keys


@triton.jit
def prepare_backward(
    OUT, o, DO, do, LSE, LSE2, DELTA, H, padded,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr,
):
    """DELTA = sum(o * do) and LSE2 = LSE in base 2, both (B, H, padded); grid (padded / M, B * H).

    Rows past T get LSE2 = +inf, so their probability is 0 in the kernels below without a mask.
    """
    o, do = (OUT, o), (DO, do)
    T = o[1][3]
    row = tl.program_id(0) * M
    batch, head = tl.program_id(1) // H, tl.program_id(1) % H
    rows = row + tl.arange(0, M)
    product = load(o, batch, row, head, D, DP, M, False).to(tl.float32)
    product *= load(do, batch, row, head, D, DP, M, False).to(tl.float32)
    plane = (batch * H + head).to(tl.int64)
    lse = tl.load(LSE + plane * T + rows, mask=rows < T, other=float("inf"))
    tl.store(LSE2 + plane * padded + rows, lse * LOG2E)
    tl.store(DELTA + plane * padded + rows, tl.sum(product, 1))


@triton.jit
def _over_queries(
    state, keys, values, q, do, LSE2, DELTA, batch, head, begin, end, exists, first, last,
    scale,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, BOUNDED: tl.constexpr,
    DESCRIPTOR: tl.constexpr, PRECISION: tl.constexpr,
):
    # Queries first[j] to last[j] - 1 see key j, if it exists.
    dk, dv = state
    for m in tl.range(begin, end, M):
        rows = m + tl.arange(0, M)
        queries = load(q, batch, m, head, D, DP, M, DESCRIPTOR)
        lse = tl.load(LSE2 + rows)
        s = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)  # (N, M)
        p = tl.exp2(s * (scale * LOG2E) - lse[None, :])
        if MASKED:
            where = exists[:, None]
            if CAUSAL:
                where = where & (rows[None, :] >= first[:, None])
            if BOUNDED:
                where = where & (rows[None, :] < last[:, None])
            p = tl.where(where, p, 0.0)
        dos = load(do, batch, m, head, D, DP, M, DESCRIPTOR)
        dv = tl.dot(p.to(dos.dtype), dos, dv, input_precision=PRECISION)
        dp = tl.dot(values, tl.trans(dos), input_precision=PRECISION)
        ds = p * (dp - tl.load(DELTA + rows)[None, :])
        ds = ds.to(queries.dtype)
        dk = tl.dot(ds, queries, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def backward_keys(
    Q, q, K, k, V, v, DO, do, DK, dk, DV, dv, LSE2, DELTA, LAST, H, group, padded, scale,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, BOUNDED: tl.constexpr,
    DESCRIPTOR: tl.constexpr, PRECISION: tl.constexpr,
):
    """Write dk and dv; grid (tiles of N keys, B * K).

    LAST (B, S) int32: queries before LAST[j] see key j; non-decreasing along S.
    """
    q, k, v, do = (Q, q), (K, k), (V, v), (DO, do)
    dk, dv = (DK, dk), (DV, dv)
    T, S = q[1][3], k[1][3]
    column = tl.program_id(0) * N
    heads = H // group
    batch, kv_head = tl.program_id(1) // heads, tl.program_id(1) % heads
    columns = column + tl.arange(0, N)
    first = columns - (S - T)
    last = first
    begin, full_begin, full_end, end = 0, 0, T, T
    if CAUSAL:
        begin = tl.maximum(column - (S - T), 0) // M * M
        full_begin = (tl.maximum(column + N - 1 - (S - T), 0) + M - 1) // M * M
    if BOUNDED:
        bounds = LAST + batch.to(tl.int64) * S
        last = tl.load(bounds + columns, mask=columns < S, other=0)
        end = tl.load(bounds + tl.minimum(column + N, S) - 1)
        full_end = tl.load(bounds + column) // M * M
    # Probabilities of keys past S must be 0, not exp2(0 - lse), which may be infinite.
    full_begin = tl.where(column + N > S, end, tl.minimum(full_begin, end))
    full_end = tl.maximum(full_end, full_begin)

    keys = load(k, batch, column, kv_head, D, DP, N, DESCRIPTOR)
    values = load(v, batch, column, kv_head, D, DP, N, DESCRIPTOR)
    state = (tl.zeros([N, DP], tl.float32), tl.zeros([N, DP], tl.float32))
    for member in range(group):
        head = kv_head * group + member
        plane = (batch * H + head).to(tl.int64) * padded
        state = _over_queries(
            state, keys, values, q, do, LSE2 + plane, DELTA + plane, batch, head,
            begin, full_begin, columns < S, first, last, scale, D, DP, M, N,
            True, CAUSAL, BOUNDED, DESCRIPTOR, PRECISION,
        )
        state = _over_queries(
            state, keys, values, q, do, LSE2 + plane, DELTA + plane, batch, head,
            full_begin, full_end, columns < S, first, last, scale, D, DP, M, N,
            False, CAUSAL, BOUNDED, DESCRIPTOR, PRECISION,
        )
        if BOUNDED:
            state = _over_queries(
                state, keys, values, q, do, LSE2 + plane, DELTA + plane, batch, head,
                full_end, end, columns < S, first, last, scale, D, DP, M, N,
                True, CAUSAL, True, DESCRIPTOR, PRECISION,
            )
    store(dk, batch, column, kv_head, state[0] * scale, D, DP, N)
    store(dv, batch, column, kv_head, state[1], D, DP, N)


@triton.jit
def _dq_over_keys(
    acc, queries, dos, lse, delta, k, v, batch, head, begin, end, first, last, scale,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, BOUNDED: tl.constexpr,
    DESCRIPTOR: tl.constexpr, PRECISION: tl.constexpr,
):
    for n in tl.range(begin, end, N):
        keys = load(k, batch, n, head, D, DP, N, DESCRIPTOR)
        s = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)  # (M, N)
        p = tl.exp2(s * (scale * LOG2E) - lse[:, None])
        if MASKED:
            p = tl.where(seen(n, k[1][3], first, last, N, CAUSAL, BOUNDED), p, 0.0)
        values = load(v, batch, n, head, D, DP, N, DESCRIPTOR)
        ds = p * (tl.dot(dos, tl.trans(values), input_precision=PRECISION) - delta[:, None])
        acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision=PRECISION)
    return acc


@triton.jit
def backward_queries(
    Q, q, K, k, V, v, DO, do, DQ, dq, LSE2, DELTA, FIRST, H, group, padded, scale,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, BOUNDED: tl.constexpr,
    DESCRIPTOR: tl.constexpr, PRECISION: tl.constexpr,
):
    """Write dq; grid (tiles of M queries, B * H). FIRST as in the forward kernel."""
    q, k, v, do, dq = (Q, q), (K, k), (V, v), (DO, do), (DQ, dq)
    T, S = q[1][3], k[1][3]
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    batch, head = tl.program_id(1) // H, tl.program_id(1) % H
    rows = row + tl.arange(0, M)
    first, last, begin, full_begin, full_end, end = visible_keys(
        FIRST, batch, row, T, S, M, N, CAUSAL, BOUNDED
    )

    queries = load(q, batch, row, head, D, DP, M, DESCRIPTOR)
    dos = load(do, batch, row, head, D, DP, M, DESCRIPTOR)
    plane = (batch * H + head).to(tl.int64) * padded
    lse = tl.load(LSE2 + plane + rows)
    delta = tl.load(DELTA + plane + rows)
    kv_head = head // group
    acc = tl.zeros([M, DP], tl.float32)
    if BOUNDED:
        acc = _dq_over_keys(
            acc, queries, dos, lse, delta, k, v, batch, kv_head, begin, full_begin, first, last,
            scale, D, DP, N, True, CAUSAL, True, DESCRIPTOR, PRECISION,
        )
    acc = _dq_over_keys(
        acc, queries, dos, lse, delta, k, v, batch, kv_head, full_begin, full_end, first, last,
        scale, D, DP, N, False, CAUSAL, BOUNDED, DESCRIPTOR, PRECISION,
    )
    acc = _dq_over_keys(
        acc, queries, dos, lse, delta, k, v, batch, kv_head, full_end, end, first, last,
        scale, D, DP, N, True, CAUSAL, BOUNDED, DESCRIPTOR, PRECISION,
    )
    store(dq, batch, row, head, acc * scale, D, DP, M)
