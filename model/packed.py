"""Projections that read their weights at full memory bandwidth, for sampling on a CPU.

Decode at small batches is limited by memory bandwidth, and torch's linear layer reaches a third of
it (docs/log.md).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from model.fused import swiglu
from model.scratch import ReluFeedForward
from model.transformer import Attention, Block, FeedForward, Transformer

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


def pack_attention(attention: Attention, rows: int) -> None:
    """Fuse wq, wk and wv into one projection, in place."""
    weights = [attention.wq.weight, attention.wk.weight, attention.wv.weight]
    widths = [len(weight) for weight in weights]
    wqkv = PackedLinear(torch.cat(weights), rows)
    del attention.wq, attention.wk, attention.wv
    attention.register_module("wqkv", wqkv)
    attention.register_module("wo", PackedLinear(attention.wo.weight, rows))
    attention.project = lambda x: wqkv(x).split(widths, -1)  # type: ignore[method-assign]


def pack_feed_forward(ffn: FeedForward | ReluFeedForward, rows: int) -> None:
    """Fuse w1 and w3 of a gated feed-forward into one projection, in place."""
    if isinstance(ffn, FeedForward):
        w13 = PackedLinear(torch.cat([ffn.w1.weight, ffn.w3.weight]), rows)
        del ffn.w1, ffn.w3
        ffn.register_module("w13", w13)
        ffn.activate = lambda x: swiglu(*w13(x).chunk(2, -1))  # type: ignore[method-assign]
    else:
        ffn.register_module("w1", PackedLinear(ffn.w1.weight, rows))
    ffn.register_module("w2", PackedLinear(ffn.w2.weight, rows))


@torch.no_grad()
def pack(model: Transformer, rows: int) -> Transformer:
    """Replace every projection of a `model` on a CPU by a PackedLinear, in place; returns it.

    Projections with the same input are fused. The model then generates and computes logits, but
    cannot be trained or scored with `targets`. `rows` is the number of sequences generated at a
    time; other numbers work, but slower. A model with biases, or of a dtype without oneDNN kernels
    on this CPU, is returned unchanged.
    """
    dtype = model.tok_embeddings.weight.dtype
    supported = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if model.config.biases != "none" or not (torch.backends.mkldnn.is_available() and supported):
        return model
    for block in model.layers:
        assert isinstance(block, Block)
        assert isinstance(block.feed_forward, FeedForward | ReluFeedForward)
        pack_attention(block.attention, rows)
        pack_feed_forward(block.feed_forward, rows)
    model.register_module("output", PackedLinear(model.output.weight, rows))
    return model
