"""Weight-only int8 for sampling: half of bfloat16's bytes to read per token.

At small batches a step costs what reading the weights costs; activations stay in floating point.
"""

import torch
from torch import nn

from model.packed import replace_projections
from model.scratch import ReluFeedForward
from model.transformer import Block, FeedForward, Transformer

FEW = 16  # rows up to which reading int8 is faster than widening it first, on a CPU (docs/log.md)


class Int8Linear(nn.Module):
    """Y = x W^T with W as int8 and one scale per row, its largest magnitude over 127.

    (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339, section 2: absmax, by row, weights only.)
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor):
        """`weight`: (out, in), any float dtype, which is that of the scales."""
        super().__init__()
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        steps = (weight.float() / scale.float()[:, None]).round()
        # A scale that was rounded down would take the largest magnitude beyond a byte.
        self.register_buffer("weight", steps.clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out), dtype of x."""
        flat = x.reshape(-1, x.shape[-1])
        # torch's kernel reads past the end of matrices whose sides are no multiples of its tiles.
        fits = self.weight.shape[0] % 16 == 0 and self.weight.shape[1] % 32 == 0
        if fits and len(flat) <= FEW and x.device.type == "cpu" and x.dtype == torch.bfloat16:
            y = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scale)
        else:
            y = flat @ self.weight.to(x.dtype).T * self.scale
        return y.view(*x.shape[:-1], -1)


@torch.no_grad()
def equalize(model: Transformer) -> Transformer:
    """Scale hidden units of the feed-forward blocks, in place, so that w2 loses less as bytes.

    A row is rounded in steps of its largest magnitude, so its columns come a quarter of the way to
    one magnitude; what produces the hidden unit takes the scale back, and the model computes the
    same (Nagel et al. 2019, arXiv:1906.04721, section 4.1; the quarter: docs/log.md). Returns the
    model.
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
            ffn.w1.weight.div_(scale.sqrt()[:, None])  # it is squared
    return model


def quantize(model: Transformer) -> Transformer:
    """Make every projection of a bfloat16 `model` an Int8Linear, in place; returns it.

    See `equalize` and `model.packed.replace_projections`.
    """
    return replace_projections(equalize(model), Int8Linear)
