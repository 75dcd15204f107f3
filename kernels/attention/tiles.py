"""Helpers of the attention kernels: tile loads and stores, visible keys.

B batch, T queries, S keys, H query heads, K key/value heads, D head_dim; DP is D rounded up to a
power of two. A tensor (B, rows, heads, D) with a contiguous last dimension is represented by a tuple

    (pointer or descriptor, (stride of B, stride of rows, stride of heads, rows))

so packed and strided inputs need no copy. A kernel receives it as two arguments: Triton 3.6 cannot
launch a kernel with a descriptor inside a tuple.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def pointers(x, batch, row, head, DP: tl.constexpr, BLOCK: tl.constexpr):
    """Addresses of rows `row` to `row + BLOCK` of one head, (BLOCK, DP)."""
    start, shape = x
    stride_b, stride_t, stride_h, _ = shape
    base = start + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
    rows = (row + tl.arange(0, BLOCK)).to(tl.int64)
    return base + rows[:, None] * stride_t + tl.arange(0, DP)[None, :]


@triton.jit
def inside(x, row, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr):
    """Mask of the elements of a (BLOCK, DP) tile that lie inside the tensor."""
    where = (row + tl.arange(0, BLOCK) < x[1][3])[:, None]
    if D < DP:
        where = where & (tl.arange(0, DP) < D)[None, :]
    return where


@triton.jit
def load(x, batch, row, head, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, DESCRIPTOR: tl.constexpr):
    """Load a (BLOCK, DP) tile; elements outside the tensor are 0."""
    if DESCRIPTOR:
        tile = x[0].load([batch, row, head, 0]).reshape([BLOCK, DP])
    else:
        where = inside(x, row, D, DP, BLOCK)
        tile = tl.load(pointers(x, batch, row, head, DP, BLOCK), mask=where, other=0.0)
    return tile


@triton.jit
def store(x, batch, row, head, value, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr):
    """Store the elements of a (BLOCK, DP) tile inside the tensor, rounded to its dtype."""
    value = value.to(x[0].dtype.element_ty)
    where = inside(x, row, D, DP, BLOCK)
    tl.store(pointers(x, batch, row, head, DP, BLOCK), value, mask=where)


@triton.jit
def visible_keys(
    FIRST, batch, row, T, S, M: tl.constexpr, N: tl.constexpr, CAUSAL: tl.constexpr, BOUNDED: tl.constexpr
):
    """Bounds of the keys that queries `row` to `row + M` see (causal, document mask, sliding window).

    Per query its first and last key, both (M,); for the tile begin <= full_begin <= full_end <= end.
    Some query sees a key in begin..end; every query sees every key in full_begin..full_end.
    """
    rows = row + tl.arange(0, M)
    last = rows + (S - T)  # queries are the last T of S positions
    first = last
    begin, full_begin, full_end, end = 0, 0, S // N * N, S
    if CAUSAL:
        full_end = tl.minimum(full_end, (row + 1 + S - T) // N * N)
        end = tl.minimum(end, row + M + S - T)
    if BOUNDED:
        bounds = FIRST + batch.to(tl.int64) * T
        first = tl.load(bounds + rows, mask=rows < T, other=0)
        begin = tl.load(bounds + row) // N * N
        highest = tl.load(bounds + tl.minimum(row + M, T) - 1)
        full_begin = tl.minimum((highest + N - 1) // N * N, end)
    return first, last, begin, full_begin, tl.maximum(full_end, full_begin), end


@triton.jit
def seen(n, S, first, last, N: tl.constexpr, CAUSAL: tl.constexpr, BOUNDED: tl.constexpr):
    """Mask (M, N): True if the query sees the key, for keys `n` to `n + N`."""
    column = n + tl.arange(0, N)[None, :]
    where = column < S
    if CAUSAL:
        where = where & (column <= last[:, None])
    if BOUNDED:
        where = where & (column >= first[:, None])
    return where
