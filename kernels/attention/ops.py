"""The attention operator: checks, registration with torch, gradients, FLOPs.

`torch.ops.homegrown.attention` and `.attention_backward` are opaque to torch.compile: their fake
implementations compute the shapes, the CPU and CUDA implementations the values.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from kernels.attention.cpu import accumulation_dtype, cpu_backward, cpu_forward
from kernels.device import bypasses_dispatcher, ensure_unit_stride, library, runs_triton

MAX_HEAD_DIM = 128


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    first: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention without the score matrix in memory (FlashAttention-2, arXiv:2307.08691).

    Args:
        q: (B, T, H, D) queries, the last T of S positions; bfloat16, float16 or float32. Any
            strides with a contiguous last dimension: a slice of packed q, k, v needs no copy.
        k: (B, S, K, D) keys, S >= T if causal; H is a multiple of K (grouped-query attention).
        v: (B, S, K, D) values.
        causal: query i sees keys up to i + S - T.
        first: (B, T) int32, the first key that each query sees: the document mask and the sliding
            window, built by `first_keys`. None is neither. Needs `causal`.
        scale: factor of the scores; D ** -0.5 if None.

    Returns:
        o (B, T, H, D) like q, and the natural log-sum-exp of the scores, (B, H, T) float32 (float64
        for float64), which has no gradient.

    Raises ValueError for invalid shapes, dtypes, devices and values.
    """
    _check(q, k, v, causal, first)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if bypasses_dispatcher(q):
        return cpu_forward(q, k, v, first, causal, scale)
    return torch.ops.homegrown.attention(q, k, v, first, causal, scale)


def first_keys(
    T: int,
    S: int | None = None,
    *,
    window: int = 0,
    documents: torch.Tensor | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Build the document mask, the sliding window, or both, as the `first` of `attention`.

    Args:
        T: number of queries, the last of S positions.
        S: number of keys; T if None.
        window: sliding window: each query sees at most this many keys, including its own; 0 is no
            limit.
        documents: document mask: (B, S) integer ids, non-decreasing along S; a query sees only keys
            of its own document.
        device: device of the result; ignored if `documents` is given.

    Returns:
        (B, T) int32, the first visible key of each query, non-decreasing along T; B = 1 without
        documents (use `.expand`).

    Raises ValueError for a negative window, or documents that are not sorted or not (B, S).
    """
    S = T if S is None else S
    if window < 0:
        raise ValueError(f"window = {window} is negative; use 0 for no window")
    if documents is not None:
        device = documents.device
        if documents.dim() != 2 or documents.shape[1] != S or documents.is_floating_point():
            raise ValueError(f"documents is {_shape(documents)}, not integers of shape (B, {S})")
        if (documents.diff() < 0).any():
            raise ValueError("documents is not sorted: ids must not decrease along a row")
    positions = torch.arange(S - T, S, device=device, dtype=torch.int32)
    first = torch.zeros_like(positions) if not window else (positions - window + 1).clamp(min=0)
    first = first[None]
    if documents is not None:
        ids = documents.contiguous()
        starts = torch.searchsorted(ids, ids[:, S - T :].contiguous(), out_int32=True)
        first = torch.maximum(first, starts)
    return first.contiguous()


def _shape(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def _check(q, k, v, causal, first) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} is {_shape(x)}, not (B, T, heads, head_dim)")
        if x.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            raise ValueError(f"{name} is {_shape(x)}; attention supports bfloat16, float16, float32")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, q {q.dtype} on {q.device}")
    B, T, H, D = q.shape
    S, K = k.shape[1:3]
    if not 1 <= D <= MAX_HEAD_DIM:
        raise ValueError(f"q has head_dim {D}; attention supports 1 to {MAX_HEAD_DIM}")
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != D:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} do not match q {tuple(q.shape)}")
    if K == 0 or H % K:
        raise ValueError(f"q has {H} heads, which is not a multiple of the {K} of k and v")
    if causal and T > S:
        raise ValueError(f"q has {T} positions, more than the {S} of k and v")
    if first is not None:
        if not causal:
            raise ValueError("first: a sliding window or document mask needs causal=True")
        if first.shape != (B, T) or first.dtype != torch.int32:
            raise ValueError(f"first is {_shape(first)}, not int32 {(B, T)}")


library.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? first, bool causal, float scale) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "attention_backward(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, "
    "Tensor? first, bool causal, float scale) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _forward(q, k, v, first, causal, scale):
    q, k, v = (ensure_unit_stride(x) for x in (q, k, v))
    first = None if first is None else first.contiguous()
    if not runs_triton(q):
        return cpu_forward(q, k, v, first, causal, scale)
    from kernels.attention.launch import launch_forward

    return launch_forward(q, k, v, first, causal, scale)


def _backward(do, q, k, v, o, lse, first, causal, scale):
    do, q, k, v = (ensure_unit_stride(x) for x in (do, q, k, v))
    first = None if first is None else first.contiguous()
    if not runs_triton(q):
        return cpu_backward(do, q, k, v, o, lse, first, causal, scale)
    from kernels.attention.launch import launch_backward

    return launch_backward(do, q, k, v, o, lse, first, causal, scale)


for device in ("CPU", "CUDA"):
    library.impl("attention", _forward, device)
    library.impl("attention_backward", _backward, device)


@torch.library.register_fake("homegrown::attention", lib=library)
def _fake(q, k, v, first, causal, scale):
    B, T, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((B, H, T), dtype=accumulation_dtype(q.dtype))


@torch.library.register_fake("homegrown::attention_backward", lib=library)
def _fake_backward(do, q, k, v, o, lse, first, causal, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output) -> None:
    q, k, v, first, *settings = inputs
    ctx.save_for_backward(q, k, v, *output, first)
    ctx.settings = settings
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, do, _):
    q, k, v, o, lse, first = ctx.saved_tensors
    gradients = torch.ops.homegrown.attention_backward(do, q, k, v, o, lse, first, *ctx.settings)
    return *gradients, None, None, None


torch.library.register_autograd("homegrown::attention", _gradients, setup_context=_save, lib=library)


def _pairs(T: int, S: int, causal: bool) -> int:
    return T * (S - T) + T * (T + 1) // 2 if causal else T * S


@register_flop_formula(torch.ops.homegrown.attention)
def _flops(q, k, v, first, causal, *_, **__) -> int:
    """Two products over all (causal) pairs: the shapes do not show what `first` masks out."""
    B, T, H, D = q
    return 4 * B * H * D * _pairs(T, k[1], causal)


@register_flop_formula(torch.ops.homegrown.attention_backward)
def _backward_flops(do, q, k, v, o, lse, first, causal, *_, **__) -> int:
    """Five products, the usual count; the kernels compute the scores twice."""
    return _flops(q, k, v, first, causal) * 5 // 2
