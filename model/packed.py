"""Projections whose weights lie in memory the way a CPU's matrix kernels read them, for sampling.

At small batches a step costs what reading the weights costs, and torch's plain layout is read at a
third of the memory's bandwidth (docs/log.md).
"""

import torch
from torch import nn

from model.transformer import Transformer

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
    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(parent, name, PackedLinear(linear.weight))
    return model
