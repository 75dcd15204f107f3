"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685, section 4.1).

A frozen weight W (out, in) acts as W + (alpha / rank) B A, with A (rank, in) drawn at random and
B (out, rank) zero, so that training starts at the pretrained model. Only A and B are trained.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from configs.cli import UserError
from configs.schema import LoraConfig
from model.transformer import Transformer


class LoraLinear(nn.Linear):
    """A linear layer that keeps its weight, under its own name, and adds a trained update."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float

    @classmethod
    def around(cls, linear: nn.Linear, config: LoraConfig, generator: torch.Generator):
        """An adapted layer that shares `linear`'s weight; A as in `nn.Linear`, B zero."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=False)
        layer.weight = linear.weight
        layer.lora_A = nn.Parameter(torch.empty(config.rank, linear.in_features))
        layer.lora_B = nn.Parameter(torch.zeros(linear.out_features, config.rank))
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5), generator=generator)
        layer.scale = config.alpha / config.rank
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out)."""
        update = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return F.linear(x, self.weight) + self.scale * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer with the update added to a copy of the weight."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        update = self.scale * self.lora_B @ self.lora_A
        linear.weight = nn.Parameter(self.weight + update.to(self.weight))
        return linear


def add_lora(model: Transformer, config: LoraConfig, seed: int) -> Transformer:
    """Freeze `model` and put adapters on the target layers of every block; returns the model.

    Raises UserError for a rank above the smallest adapted dimension, and for a target that the
    model does not have.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.layers:
        for target in config.targets:
            attention, feed_forward = (
                block.get_submodule("attention"),
                block.get_submodule("feed_forward"),
            )
            room = attention if hasattr(attention, target) else feed_forward
            linear = getattr(room, target, None)
            if linear is None:
                raise UserError(f'lora.targets: this model has no layer "{target}"')
            smallest = min(linear.in_features, linear.out_features)
            if config.rank > smallest:
                raise UserError(f"lora.rank = {config.rank} is above {target}'s {smallest}")
            setattr(room, target, LoraLinear.around(linear, config, generator))
    return model


def merge_lora(model: Transformer) -> Transformer:
    """Replace every adapted layer by a plain one that computes the same; returns the model."""
    for room in list(model.modules()):
        for name, layer in list(room.named_children()):
            if isinstance(layer, LoraLinear):
                setattr(room, name, layer.merged())
    return model
