"""Projections whose weights are read as fast as memory gives them, for sampling on a CPU.

At small batches a step costs what reading the weights costs, and torch's linear layer reads them at
a third of the memory's bandwidth (docs/log.md).
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


def pack_attention(attention: Attention, linear: Make) -> None:
    """Compute queries, keys and values with one product, in place."""
    parts = [attention.wq, attention.wk, attention.wv]
    widths = [len(part.weight) for part in parts]
    wqkv = linear(torch.cat([part.weight for part in parts]))
    for name in ("wq", "wk", "wv"):
        delattr(attention, name)
    attention.register_module("wqkv", wqkv)
    attention.register_module("wo", linear(attention.wo.weight))
    attention.project = lambda x: wqkv(x).split(widths, -1)  # type: ignore[method-assign]


def pack_feed_forward(ffn: FeedForward | ReluFeedForward, linear: Make) -> None:
    """Compute both inner products of a gated block with one, in place."""
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
def replace_projections(model: Transformer, linear: Make) -> Transformer:
    """Make `linear(weight)` of every projection of `model`, in place; returns it.

    Those that share their input become one. The model can generate and give logits afterwards, but
    not be trained or scored with `targets`. Raises UserError for a model with biases.
    """
    if model.config.biases != "none":
        raise UserError("a model whose linear layers have biases cannot be packed or made int8")
    for block in model.layers:
        assert isinstance(block, Block)
        assert isinstance(block.feed_forward, FeedForward | ReluFeedForward)
        pack_attention(block.attention, linear)
        pack_feed_forward(block.feed_forward, linear)
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
