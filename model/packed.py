"""Projections whose weights are read as fast as memory gives them, for sampling on a CPU.

At small batches a step costs what reading the weights costs, and torch's linear layer reads them at
a third of the memory's bandwidth (docs/log.md).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from configs.cli import UserError
from model.fused import relu2, swiglu
from model.transformer import Attention, Block, FeedForward, Transformer

Make = Callable[[torch.Tensor], nn.Module]  # of a projection's weight (out, in)
BLOCKS = 8  # products that one vector is multiplied by at a time


class PackedLinear(nn.Module):
    """Y = x W^T without gradients, best at `rows` rows of x.

    One row in float32 is a batch of products with blocks of W, which torch shares out over cores as
    it does not do with a single one. Else W is reordered once by oneDNN.
    """

    def __init__(self, weight: torch.Tensor, rows: int):
        """`weight`: (out, in) on a CPU, float32 or bfloat16."""
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
        # A row transposed: with the strides of a column torch takes a path five times as slow.
        column = x.reshape(1, 1, -1).expand(len(self.blocks), 1, -1).mT
        return torch.bmm(self.blocks, column).view(*x.shape[:-1], -1)


class PackedAttention(Attention):
    """Attention whose queries, keys and values come out of one product."""

    def __init__(self, attention: Attention, linear: Make):
        nn.Module.__init__(self)
        self.config, self.layer = attention.config, attention.layer
        self.rotates = attention.rotates
        weights = [w.weight for w in (attention.wq, attention.wk, attention.wv)]
        self.widths = [len(weight) for weight in weights]
        self.wqkv = linear(torch.cat(weights))
        self.register_module("wo", linear(attention.wo.weight))
        for name in ("q_norm", "k_norm", "value_scale"):
            if hasattr(attention, name):
                setattr(self, name, getattr(attention, name))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As Attention's."""
        return self.wqkv(x).split(self.widths, -1)


class PackedFeedForward(FeedForward):
    """A feed-forward block whose two inner products, if it is gated, are one."""

    def __init__(self, block: FeedForward, linear: Make):
        nn.Module.__init__(self)
        self.activation = block.activation
        weights = [block.w1.weight]
        if self.activation == "swiglu":
            weights.append(block.w3.weight)
        self.w13 = linear(torch.cat(weights))
        self.register_module("w2", linear(block.w2.weight))

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """As FeedForward's."""
        y = self.w13(x)
        return swiglu(*y.chunk(2, -1)) if self.activation == "swiglu" else relu2(y)


@torch.no_grad()
def replace_projections(model: Transformer, linear: Make) -> Transformer:
    """Make `linear(weight)` of every projection of `model`, in place; returns it.

    Those that share their input become one. The model can generate and give logits afterwards, but
    not be trained or scored with `targets`. Raises UserError for a model with biases.
    """
    if model.config.biases != "none":
        raise UserError("a model whose linear layers have biases cannot be packed or made int8")
    for block in model.layers:
        assert isinstance(block, Block)
        block.attention = PackedAttention(block.attention, linear)
        block.feed_forward = PackedFeedForward(block.feed_forward, linear)
    model.register_module("output", linear(model.output.weight))
    return model


def pack(model: Transformer, rows: int) -> Transformer:
    """Make every projection of a `model` on a CPU a PackedLinear, in place; returns it.

    `rows` is how many sequences will be generated at a time; others are right, but slower. A model
    that oneDNN has no kernels for on this CPU, or with biases, stays as it is.

    See `replace_projections`.
    """
    dtype = model.tok_embeddings.weight.dtype
    supported = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    plain = model.config.biases == "none"
    if not (torch.backends.mkldnn.is_available() and supported and plain):
        return model
    return replace_projections(model, lambda weight: PackedLinear(weight, rows))
