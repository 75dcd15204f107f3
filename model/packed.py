"""Projections whose weights lie in memory the way a CPU's matrix kernels read them, for sampling.

At small batches a step costs what reading the weights costs, and torch's plain layout is read at a
third of the memory's bandwidth (docs/log.md).
"""

import torch
from torch import nn

from model.fused import relu2, swiglu
from model.transformer import Attention, Block, FeedForward, Transformer

ROWS = 8  # what the layout is chosen for; others are computed as well


class PackedLinear(nn.Module):
    """Y = x W^T without gradients, W reordered once by oneDNN."""

    def __init__(self, weight: torch.Tensor):
        """`weight`: (out, in) on a CPU, float32 or bfloat16."""
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out), both in the dtype of the weight."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


class PackedAttention(Attention):
    """Attention whose queries, keys and values come out of one product."""

    def __init__(self, attention: Attention):
        nn.Module.__init__(self)
        self.config, self.layer = attention.config, attention.layer
        weights = [w.weight for w in (attention.wq, attention.wk, attention.wv)]
        self.widths = [len(weight) for weight in weights]
        self.wqkv = PackedLinear(torch.cat(weights))
        self.register_module("wo", PackedLinear(attention.wo.weight))
        for name in ("q_norm", "k_norm", "value_scale"):
            if hasattr(attention, name):
                setattr(self, name, getattr(attention, name))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As Attention's."""
        return self.wqkv(x).split(self.widths, -1)


class PackedFeedForward(FeedForward):
    """A feed-forward block whose two inner products, if it is gated, are one."""

    def __init__(self, block: FeedForward):
        nn.Module.__init__(self)
        self.gated = block.gated
        weights = [block.w1.weight, block.w3.weight] if block.gated else [block.w1.weight]
        self.w13 = PackedLinear(torch.cat(weights))
        self.register_module("w2", PackedLinear(block.w2.weight))

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """As FeedForward's."""
        y = self.w13(x)
        return swiglu(*y.chunk(2, -1)) if self.gated else relu2(y)


@torch.no_grad()
def pack(model: Transformer) -> Transformer:
    """Make every projection of a `model` on a CPU a PackedLinear, in place; returns it.

    It can generate and give logits afterwards, but not be trained or scored with `targets`. A
    model that oneDNN has no kernels for on this CPU stays as it is.
    """
    dtype = model.tok_embeddings.weight.dtype
    supported = dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    if not (torch.backends.mkldnn.is_available() and supported):
        return model
    for block in model.layers:
        assert isinstance(block, Block)
        block.attention = PackedAttention(block.attention)
        block.feed_forward = PackedFeedForward(block.feed_forward)
    model.register_module("output", PackedLinear(model.output.weight))
    return model
