"""Weight-only int8 quantisation for sampling: half the bytes of bfloat16 to read per token.

Decode at small batches is limited by memory bandwidth; activations stay in floating point.
"""

import torch
from torch import nn

from model.packed import replace_projections
from model.scratch import ReluFeedForward
from model.transformer import Block, FeedForward, Transformer

MAX_KERNEL_ROWS = 16  # with more rows, converting the weights first is faster on a CPU (docs/log.md)


class Int8Linear(nn.Module):
    """y = x W^T with W in int8 and one scale per row: the row's absolute maximum / 127.

    (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339, section 2: absmax, per row, weights only.)
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor):
        """`weight`: (out, in), any float dtype; the scales have the same dtype."""
        super().__init__()
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        steps = (weight.float() / scale.float()[:, None]).round()
        # A scale that was rounded down gives values above 127.
        self.register_buffer("weight", steps.clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out), dtype of x."""
        flat = x.reshape(-1, x.shape[-1])
        # torch's kernel reads out of bounds if the shape is not a multiple of its tiles.
        fits = self.weight.shape[0] % 16 == 0 and self.weight.shape[1] % 32 == 0
        if fits and len(flat) <= MAX_KERNEL_ROWS and x.device.type == "cpu" and x.dtype == torch.bfloat16:
            y = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scale)
        else:
            y = flat @ self.weight.to(x.dtype).T * self.scale
        return y.view(*x.shape[:-1], -1)


@torch.no_grad()
def equalize(model: Transformer) -> Transformer:
    """Cross-layer equalisation: rescale the feed-forward hidden units to quantise w2 better.

    Rounding errors in a row of w2 grow with its absolute maximum. So each column is multiplied by
    its absolute maximum ** -0.25 (the exponent: docs/log.md), and the rows of w3 or w1 that produce
    the hidden unit are divided by it, so the output does not change (Nagel et al. 2019,
    arXiv:1906.04721, section 4.1). Works in place and returns the model.
    """
    for block in model.layers:
        assert isinstance(block, Block)
        ffn = block.feed_forward
        assert isinstance(ffn, FeedForward | ReluFeedForward)
        scale = ffn.w2.weight.abs().amax(0).clamp(min=1e-6) ** -0.25
        ffn.w2.weight.mul_(scale)
        if isinstance(ffn, FeedForward):
            ffn.w3.weight.div_(scale[:, None])
        else:
            ffn.w1.weight.div_(scale.sqrt()[:, None])  # relu2 squares the hidden unit
    return model


def quantize(model: Transformer) -> Transformer:
    """Replace every projection of a bfloat16 `model` by an Int8Linear, in place; returns it.

    See `equalize` and `model.packed.replace_projections`.
    """
    return replace_projections(equalize(model), Int8Linear)
