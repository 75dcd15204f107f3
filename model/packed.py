"""Projections that read their weights at full memory bandwidth, for sampling on a CPU.

Decode at small batches is limited by memory bandwidth, and torch's linear layer reaches a third of
it (docs/log.md).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from model.fused import swiglu
from model.transformer import Attention, FeedForward, Transformer

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


class FusedLinear(nn.Module):
    """y = x W^T without gradients, for compiled decode: a product of one row is a sum that the compiler fuses."""

    def __init__(self, weight: torch.Tensor):
        """`weight`: (out, in), any float dtype."""
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out), in the dtype of x."""
        if torch.compiler.is_compiling() and math.prod(x.shape[:-1]) == 1:
            return (self.weight * x.flatten(0, -2).float()).sum(-1).to(x.dtype).view(*x.shape[:-1], -1)
        return F.linear(x, self.weight)


Make = Callable[[list[str], list[nn.Linear]], nn.Module]


def fuse_projections(model: Transformer, make: Make) -> None:
    """Replace the projections of all blocks, those with the same input by one, in place.

    `make(names, layers)` returns the module that replaces `layers`, whose outputs it concatenates.
    """
    for number, block in enumerate(model.layers):
        attention, ffn = block.attention, block.feed_forward
        assert isinstance(attention, Attention)
        assert isinstance(ffn, nn.Module)
        widths = [getattr(attention, each).out_features for each in ("wq", "wk", "wv")]
        gated = isinstance(ffn, FeedForward)
        groups: list[tuple[nn.Module, tuple[str, ...], str]] = [
            (attention, ("wq", "wk", "wv"), "wqkv"),
            (attention, ("wo",), "wo"),
            (ffn, ("w1", "w3") if gated else ("w1",), "w13" if gated else "w1"),
            (ffn, ("w2",), "w2"),
        ]
        for parent, names, fused in groups:
            where = "attention" if parent is attention else "feed_forward"
            layers = [getattr(parent, each) for each in names]
            module = make([f"layers.{number}.{where}.{each}.weight" for each in names], layers)
            for each in names:
                delattr(parent, each)
            parent.register_module(fused, module)
            if fused == "wqkv":
                attention.project = partial(_split, module, widths)  # type: ignore[method-assign]
            elif fused == "w13":
                ffn.activate = partial(_gate, module)  # type: ignore[assignment]


def _split(linear: nn.Module, widths: list[int], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return linear(x).split(widths, -1)


def _gate(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return swiglu(*linear(x).chunk(2, -1))


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
    fuse_projections(model, lambda _, layers: PackedLinear(_joined(layers), rows))
    model.register_module("output", PackedLinear(model.output.weight, rows))
    return model


@torch.no_grad()
def fuse(model: Transformer) -> Transformer:
    """Replace every projection by a FusedLinear, in place; returns it. A model with biases is unchanged."""
    if model.config.biases == "none":
        fuse_projections(model, lambda _, layers: FusedLinear(_joined(layers)))
    return model


def _joined(layers: list[nn.Linear]) -> torch.Tensor:
    return torch.cat([layer.weight for layer in layers])
