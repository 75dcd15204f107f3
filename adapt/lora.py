"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685, section 4.1).

A frozen weight W (out, in) acts as W + (alpha / rank) B A, with A (rank, in) drawn at random and
B (out, rank) zero, so that training starts at the pretrained model. Only A and B are trained.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from cli.errors import UserError, nearest
from configs.finetune_recipe import LoraConfig
from model.transformer import Transformer


class LoraLinear(nn.Linear):
    """A linear layer that keeps its weight, under its own name, and adds a trained update."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float
    dropout: float
    is_merged = False

    @classmethod
    def around(cls, linear: nn.Linear, config: LoraConfig, generator: torch.Generator):
        """An adapted layer that shares `linear`'s weight; A as in `nn.Linear`, B zero."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.lora_A = nn.Parameter(torch.empty(config.rank, linear.in_features))
        layer.lora_B = nn.Parameter(torch.zeros(linear.out_features, config.rank))
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5), generator=generator)
        layer.scale = config.alpha / config.rank ** (0.5 if config.rank_stabilized else 1.0)
        layer.dropout = config.dropout
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out)."""
        y = F.linear(x, self.weight, self.bias)
        if self.is_merged:
            return y
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return y + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def update(self) -> torch.Tensor:
        """(out, in), what the adapter adds to the weight."""
        return (self.scale * self.lora_B @ self.lora_A).to(self.weight)

    @torch.no_grad()
    def merge(self, merged: bool) -> None:
        """Add the update to the weight itself, or take it out again (to rounding)."""
        if merged != self.is_merged:
            self.weight.add_(self.update(), alpha=1 if merged else -1)
            self.is_merged = merged

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """A linear layer without adapter that computes the same; the weight is a copy."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        weight = self.weight if self.is_merged else self.weight + self.update()
        linear.weight, linear.bias = nn.Parameter(weight), self.bias
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
            room, linear = _find(block, target)
            smallest = min(linear.in_features, linear.out_features)
            if config.rank > smallest:
                raise UserError(f"lora.rank = {config.rank} is above {target}'s {smallest}")
            setattr(room, target, LoraLinear.around(linear, config, generator))
    return model


def _find(block: nn.Module, target: str) -> tuple[nn.Module, nn.Linear]:
    rooms = (block.get_submodule("attention"), block.get_submodule("feed_forward"))
    known = {
        name: (room, layer) for room in rooms for name, layer in room.named_children() if isinstance(layer, nn.Linear)
    }
    if target not in known:
        hint = nearest(target, list(known))
        raise UserError(f'lora.targets: this model has no layer "{target}"{hint}')
    return known[target]


def lora_layers(model: Transformer) -> dict[str, LoraLinear]:
    """The adapted layers by name."""
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, LoraLinear)}


def merge_lora(model: Transformer) -> Transformer:
    """Replace every adapted layer by a plain one that computes the same; returns the model."""
    for room in list(model.modules()):
        for name, layer in list(room.named_children()):
            if isinstance(layer, LoraLinear):
                setattr(room, name, layer.plain())
    return model
