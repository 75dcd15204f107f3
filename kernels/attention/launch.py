"""Launchers of the attention kernels on CUDA tensors (in the interpreter: on any tensors)."""

from functools import lru_cache

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.attention.backward import backward_keys, backward_queries, prepare_backward
from kernels.attention.config import Pass, Tiles, config, padded_width
from kernels.attention.forward import forward
from kernels.device import arch

PADDING = 128  # rows of LSE and delta in the backward pass are padded to a multiple of this


def launch_forward(q, k, v, first, causal, scale, tiles: Tiles | None = None):
    """(o, lse): o like q, (B, T, H, D), contiguous; lse (B, H, T) float32, natural log."""
    B, T, H, _ = q.shape
    tiles, options = _plan("forward", tiles, (q, k, v), first, causal, scale)
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
    grid = (triton.cdiv(T, tiles.M), B * H)
    forward[grid](
        *_tensor_arguments(q, tiles, tiles.M),
        *_tensor_arguments(k, tiles, tiles.N),
        *_tensor_arguments(v, tiles, tiles.N),
        *_tensor_arguments(o),
        lse,
        first,
        **options,
    )
    return o, lse


def launch_backward(do, q, k, v, o, lse, first, causal, scale, tiles: tuple[Tiles, Tiles] | None = None):
    """(dq, dk, dv), contiguous, with the shapes and dtypes of q, k, v."""
    B, T, H, D = q.shape
    S, heads = k.shape[1:3]
    tensors, settings = (q, k, v, do), (first, causal, scale)
    tiles_k, tiles_q = tiles or (None, None)
    over_k, options_k = _plan("keys", tiles_k, tensors, *settings)
    over_q, options_q = _plan("queries", tiles_q, tensors, *settings)
    padded = triton.cdiv(T, PADDING) * PADDING
    lse2 = torch.empty(B, H, padded, dtype=torch.float32, device=q.device)
    delta = torch.empty_like(lse2)
    prepare_backward[(padded // PADDING, B * H)](
        *_tensor_arguments(o),
        *_tensor_arguments(do),
        lse,
        lse2,
        delta,
        H,
        padded,
        D=D,
        DP=padded_width(D),
        M=PADDING,
        num_warps=8,
    )
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    last = None
    if first is not None:  # the same bounds per key
        positions = torch.arange(S, dtype=torch.int32, device=q.device).expand(B, S).contiguous()
        last = torch.searchsorted(first, positions, right=True, out_int32=True)
    backward_keys[(triton.cdiv(S, over_k.N), B * heads)](
        *_tensor_arguments(q, over_k, over_k.M),
        *_tensor_arguments(k, over_k, over_k.N),
        *_tensor_arguments(v, over_k, over_k.N),
        *_tensor_arguments(do, over_k, over_k.M),
        *_tensor_arguments(dk),
        *_tensor_arguments(dv),
        lse2,
        delta,
        last,
        padded=padded,
        **options_k,
    )
    backward_queries[(triton.cdiv(T, over_q.M), B * H)](
        *_tensor_arguments(q, over_q, over_q.M),
        *_tensor_arguments(k, over_q, over_q.N),
        *_tensor_arguments(v, over_q, over_q.N),
        *_tensor_arguments(do, over_q, over_q.M),
        *_tensor_arguments(dq),
        lse2,
        delta,
        first,
        padded=padded,
        **options_q,
    )
    return dq, dk, dv


def _tensor_arguments(x: torch.Tensor, tiles: Tiles | None = None, rows: int = 0) -> tuple:
    # The two kernel arguments of a tensor: see kernels/attention/tiles.py.
    start = x
    if tiles is not None and tiles.descriptor:
        block = [1, rows, 1, padded_width(x.shape[3])]
        start = TensorDescriptor(x, list(x.shape), list(x.stride()), block)
    return start, (*x.stride()[:3], x.shape[1])


def _plan(which: Pass, tiles: Tiles | None, tensors, first, causal, scale) -> tuple[Tiles, dict]:
    # The tiles and options of a launch, worked out once per shape: launches are many and short.
    q, k = tensors[:2]
    aligned = all(x.data_ptr() % 16 == 0 for x in tensors)
    strides = tuple(x.stride()[:3] for x in tensors)
    return _cached_plan(
        arch(q), which, tiles, q.shape, k.shape[2], q.dtype, aligned, strides, first is not None, causal, scale
    )


@lru_cache(4096)
def _cached_plan(target, which, tiles, q_shape, k_heads, dtype, aligned, strides, bounded, causal, scale):
    H, D = q_shape[2:]
    tiles = tiles or config(target, which, D, dtype)
    # Tensor descriptors need addresses and strides that are multiples of 16 bytes.
    counts = [D, *(stride for each in strides for stride in each)]
    aligned = aligned and all(count * dtype.itemsize % 16 == 0 for count in counts)
    tiles = tiles._replace(descriptor=tiles.descriptor and aligned)
    return tiles, {
        "H": H,
        "group": H // k_heads,
        "scale": scale,
        "D": D,
        "DP": padded_width(D),
        "M": tiles.M,
        "N": tiles.N,
        "CAUSAL": causal,
        "BOUNDED": bounded,
        "DESCRIPTOR": tiles.descriptor,
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
