"""Launchers of the attention kernels on CUDA tensors (in the interpreter: on any tensors)."""

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.attention.backward import backward_keys, backward_queries, prepare_backward
from kernels.attention.config import Tiles, config, padded_width
from kernels.attention.forward import forward
from kernels.device import arch

PADDING = 128  # rows of LSE and delta in the backward pass are padded to a multiple of this


def launch_forward(q, k, v, first, causal, softcap, scale, tiles: Tiles | None = None):
    """(o, lse): o like q, (B, T, H, D), contiguous; lse (B, H, T) float32, natural log."""
    B, T, H, D = q.shape
    target = arch(q)
    tiles = _drop_unaligned_descriptor(tiles or config(target, "forward", D, q.dtype), q, k, v)
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
        **_kernel_options(q, k, first, causal, softcap, scale, tiles, target),
    )
    return o, lse


def launch_backward(
    do, q, k, v, o, lse, first, causal, softcap, scale, deterministic, tiles: tuple[Tiles, Tiles] | None = None
):
    """(dq, dk, dv), contiguous, with the shapes and dtypes of q, k, v."""
    B, T, H, D = q.shape
    S, heads = k.shape[1:3]
    target = arch(q)
    chosen = tiles or (
        config(target, "keys" if deterministic else "fused", D, q.dtype, softcap > 0),
        config(target, "queries", D, q.dtype),
    )
    over_k, over_q = (_drop_unaligned_descriptor(each, q, k, v, do) for each in chosen)
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
    dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    last = None
    if first is not None:  # the same bounds per key
        positions = torch.arange(S, dtype=torch.int32, device=q.device).expand(B, S).contiguous()
        last = torch.searchsorted(first, positions, right=True, out_int32=True)
    if deterministic:
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        sums = dq
    else:
        sums = torch.zeros(B, T, H, D, dtype=torch.float32, device=q.device)
    backward_keys[(triton.cdiv(S, over_k.N), B * heads)](
        *_tensor_arguments(q, over_k, over_k.M),
        *_tensor_arguments(k, over_k, over_k.N),
        *_tensor_arguments(v, over_k, over_k.N),
        *_tensor_arguments(do, over_k, over_k.M),
        *_tensor_arguments(sums, None if deterministic else over_k, over_k.M),
        *_tensor_arguments(dk),
        *_tensor_arguments(dv),
        lse2,
        delta,
        last,
        padded=padded,
        ATOMIC=not deterministic,
        **_kernel_options(q, k, last, causal, softcap, scale, over_k, target),
    )
    if not deterministic:
        return (sums * scale).to(q.dtype), dk, dv
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
        **_kernel_options(q, k, first, causal, softcap, scale, over_q, target),
    )
    return dq, dk, dv


def _drop_unaligned_descriptor(tiles: Tiles, *tensors: torch.Tensor) -> Tiles:
    # Tensor descriptors need addresses and strides that are multiples of 16 bytes.
    def aligned(x: torch.Tensor) -> bool:
        size = x.element_size()
        return x.data_ptr() % 16 == 0 and all(s * size % 16 == 0 for s in x.stride()[:3])

    aligned_widths = tensors[0].shape[3] * tensors[0].element_size() % 16 == 0
    descriptor = tiles.descriptor and aligned_widths and all(map(aligned, tensors))
    return tiles._replace(descriptor=descriptor)


def _tensor_arguments(x: torch.Tensor, tiles: Tiles | None = None, rows: int = 0) -> tuple:
    # The two kernel arguments of a tensor: see kernels/attention/tiles.py.
    start = x
    if tiles is not None and tiles.descriptor:
        block = [1, rows, 1, padded_width(x.shape[3])]
        start = TensorDescriptor(x, list(x.shape), list(x.stride()), block)
    return start, (*x.stride()[:3], x.shape[1])


def _kernel_options(q, k, bounds, causal, softcap, scale, tiles: Tiles, target: str) -> dict:
    H, D = q.shape[2:]
    return {
        "H": H,
        "group": H // k.shape[2],
        "scale": scale,
        "softcap": softcap,
        "D": D,
        "DP": padded_width(D),
        "M": tiles.M,
        "N": tiles.N,
        "CAUSAL": causal,
        "BOUNDED": bounds is not None,
        "SOFTCAP": softcap > 0,
        "FAST": target.startswith("sm_") and q.dtype == torch.bfloat16,
        "DESCRIPTOR": tiles.descriptor,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
