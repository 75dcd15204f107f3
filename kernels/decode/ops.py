"""The decode attention operator: one token per query, over a static cache of rows of any length."""

import torch
import torch.nn.functional as F

from kernels.device import library, runs_triton


def decode_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor | None,
    positions: torch.Tensor,
    slots: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """Softmax attention of single tokens over the earlier positions of their rows.

    Args:
        q: (N, H, D), one query per token; rows may have several.
        keys: (P, K, D) of all rows, one row after the other; H is a multiple of K (grouped-query
            attention).
        values: (P, K, D).
        starts: (N,) int64, where the row of each token starts among the P. None, on a CPU only: all
            tokens are of one row, whose S positions are the P: nothing is gathered.
        positions: (N,) int64, the token's position in its row; it sees the positions up to it.
        slots: (S,) int64, arange of the longest row's length; only the CPU needs it.
        window: sliding window: each query sees this many keys, its own included; 0: all.

    Returns:
        (N, H, D), dtype of q. Without gradients. Raises ValueError for invalid shapes.
    """
    is_valid = q.dim() == keys.dim() == 3 and q.shape[2] == keys.shape[2] and q.shape[1] % keys.shape[1] == 0
    if not is_valid or keys.shape != values.shape:
        shapes = ", ".join(str(tuple(each.shape)) for each in (q, keys, values))
        raise ValueError(f"q, keys, values are {shapes}; they must be (N, H, D), (P, K, D), (P, K, D)")
    if runs_triton(q):
        return torch.ops.homegrown.decode_attention(q, keys, values, starts, positions, window)
    return _on_cpu(q, keys, values, starts, positions, slots, window)


library.define(
    "decode_attention(Tensor q, Tensor keys, Tensor values, Tensor starts, Tensor positions, int window) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _launch(q, keys, values, starts, positions, window):
    from kernels.decode.kernel import launch_decode

    tensors = (x.contiguous() for x in (q.to(keys.dtype), keys, values, starts, positions))
    return launch_decode(*tensors, window, q.shape[2] ** -0.5).to(q.dtype)


for device in ("CPU", "CUDA"):
    library.impl("decode_attention", _launch, device)


@torch.library.register_fake("homegrown::decode_attention", lib=library)
def _fake(q, keys, values, starts, positions, window):
    return q.new_empty(q.shape)


def _on_cpu(q, keys, values, starts, positions, slots, window):
    N, H, D = q.shape
    K = keys.shape[1]
    visible = slots <= positions[:, None]  # (N, S)
    if window:
        visible = visible & (slots > positions[:, None] - window)
    if starts is None:
        keys, values = (each.expand(N, -1, -1, -1) for each in (keys, values))  # (N, S, K, D)
    else:
        keys, values = (each[starts[:, None] + slots] for each in (keys, values))
    if N == 1 and torch.compiler.is_compiling():  # for one token, what the compiler fuses is faster (docs/log.md)
        grouped = q.view(1, 1, K, H // K, D).float()
        scores = (grouped * keys.float()[:, :, :, None]).sum(-1) * D**-0.5  # (1, S, K, H / K)
        weights = scores.masked_fill(~visible[:, :, None, None], -torch.inf).softmax(1)
        return (weights[..., None] * values.float()[:, :, :, None]).sum(1).reshape(1, H, D).to(q.dtype)
    grouped = q.view(N, K, H // K, D).to(keys.dtype)  # a group's queries are rows of one head
    o = F.scaled_dot_product_attention(grouped, keys.transpose(1, 2), values.transpose(1, 2), visible[:, None, None])
    return o.reshape(N, H, D).to(q.dtype)
