"""Projections that read their weights at full memory bandwidth, for sampling on a CPU.

Decode at small batches is limited by memory bandwidth, and torch's linear layer reaches a third of
it (docs/log.md).
"""

import math
from collections.abc import Callable, Iterator
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


def projection_groups(model: Transformer) -> Iterator[tuple[str, nn.Module, tuple[str, ...], str]]:
    """(name of the parent, parent, its projections with the same input, their name when fused) of all blocks."""
    for number, block in enumerate(model.layers):
        attention, ffn = block.get_submodule("attention"), block.get_submodule("feed_forward")
        gate = ("w1", "w3") if isinstance(ffn, FeedForward) else ("w1",)
        for parent, where, names, fused in (
            (attention, "attention", ("wq", "wk", "wv"), "wqkv"),
            (attention, "attention", ("wo",), "wo"),
            (ffn, "feed_forward", gate, "w13" if len(gate) > 1 else "w1"),
            (ffn, "feed_forward", ("w2",), "w2"),
        ):
            yield f"layers.{number}.{where}", parent, names, fused


def fuse_projections(model: Transformer, make: Make) -> None:
    """Replace the projections of all blocks, those with the same input by one, in place.

    `make(names, layers)` returns the module that replaces `layers`, whose outputs it concatenates.
    """
    for prefix, parent, names, fused in projection_groups(model):
        layers = [getattr(parent, each) for each in names]
        widths = [each.out_features for each in layers]
        module = make([f"{prefix}.{each}.weight" for each in names], layers)
        for each in names:
            delattr(parent, each)
        parent.register_module(fused, module)
        if isinstance(parent, Attention) and fused == "wqkv":
            parent.project = partial(_split, parent, widths)  # type: ignore[method-assign]
        elif isinstance(parent, FeedForward) and fused == "w13":
            parent.activate = partial(_gate, parent)  # type: ignore[method-assign]


def _split(attention: nn.Module, widths: list[int], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return attention.get_submodule("wqkv")(x).split(widths, -1)


def _gate(ffn: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return swiglu(*ffn.get_submodule("w13")(x).chunk(2, -1))


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
