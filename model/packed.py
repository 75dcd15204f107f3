"""Projections that read their weights at full memory bandwidth, for sampling on a CPU.

Decode at small batches is limited by memory bandwidth, and torch's linear layer reaches a third of
it (docs/log.md).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from cli.errors import UserError
from model.fused import relu2, swiglu
from model.scratch import ReluFeedForward
from model.transformer import Attention, Block, FeedForward, Transformer

MakeLinear = Callable[[torch.Tensor], nn.Module]  # weight (out, in) -> projection
BLOCKS = 8  # row blocks of a weight, one matrix-vector product each


class PackedLinear(nn.Module):
    """y = x W^T without gradients, fastest at `rows` rows of x.

    For one row in float32 it is a batched product with blocks of W, which torch runs in parallel,
    unlike a single matrix-vector product. Otherwise oneDNN reorders W once.
    """

    def __init__(self, weight: torch.Tensor, rows: int):
        """`weight`: (out, in) on the CPU, float32 or bfloat16."""
        super().__init__()
        self.weight, self.packed = weight.detach(), None
        if rows == 1 and weight.dtype == torch.float32:
            self.blocks = self.weight.view(math.gcd(len(weight), BLOCKS), -1, weight.shape[1])
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
            del self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out), both in the dtype of the weight."""
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        if x.numel() > x.shape[-1]:
            return F.linear(x, self.weight)
        # A transposed row: with the strides of a column torch is five times slower.
        column = x.reshape(1, 1, -1).expand(len(self.blocks), 1, -1).mT
        return torch.bmm(self.blocks, column).view(*x.shape[:-1], -1)


def pack_attention(attention: Attention, linear: MakeLinear) -> None:
    """Fuse wq, wk and wv into one projection, in place."""
    parts = [attention.wq, attention.wk, attention.wv]
    widths = [len(part.weight) for part in parts]
    wqkv = linear(torch.cat([part.weight for part in parts]))
    for name in ("wq", "wk", "wv"):
        delattr(attention, name)
    attention.register_module("wqkv", wqkv)
    attention.register_module("wo", linear(attention.wo.weight))
    attention.project = lambda x: wqkv(x).split(widths, -1)  # type: ignore[method-assign]


def pack_feed_forward(ffn: FeedForward | ReluFeedForward, linear: MakeLinear) -> None:
    """Fuse w1 and w3 of a gated feed-forward into one projection, in place."""
    is_gated = isinstance(ffn, FeedForward)
    weights = [ffn.w1.weight, ffn.w3.weight] if isinstance(ffn, FeedForward) else [ffn.w1.weight]
    w13 = linear(torch.cat(weights))
    for name in ("w1", "w3") if is_gated else ("w1",):
        delattr(ffn, name)
    ffn.register_module("w13", w13)
    ffn.register_module("w2", linear(ffn.w2.weight))
    if is_gated:
        ffn.activate = lambda x: swiglu(*w13(x).chunk(2, -1))  # type: ignore[method-assign]
    else:
        ffn.activate = lambda x: relu2(w13(x))  # type: ignore[method-assign]


@torch.no_grad()
def replace_projections(model: Transformer, linear: MakeLinear) -> Transformer:
    """Replace every projection of `model` by `linear(weight)`, in place; returns it.

    Projections with the same input are fused. The model then generates and computes logits, but
    cannot be trained or scored with `targets`. Raises UserError for a model with biases.
    """
    if model.config.biases != "none":
        raise UserError(f"model.biases = {model.config.biases}: only models without biases can be int8")
    for block in model.layers:
        assert isinstance(block, Block)
        assert isinstance(block.feed_forward, FeedForward | ReluFeedForward)
        pack_attention(block.attention, linear)
        pack_feed_forward(block.feed_forward, linear)
    model.register_module("output", linear(model.output.weight))
    return model


def pack(model: Transformer, rows: int) -> Transformer:
    """Replace every projection of a `model` on a CPU by a PackedLinear, in place; returns it.

    `rows` is the number of sequences generated at a time; other numbers work, but slower. A model
    with biases, or of a dtype without oneDNN kernels on this CPU, is returned unchanged. See
    `replace_projections`.
    """
    dtype = model.tok_embeddings.weight.dtype
    supported = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    has_biases = model.config.biases != "none"
    if has_biases or not (torch.backends.mkldnn.is_available() and supported):
        return model
    return replace_projections(model, lambda weight: PackedLinear(weight, rows))
