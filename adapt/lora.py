"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685, section 4.1).

A frozen weight W (out, in) becomes W + (alpha / rank) B A. A (rank, in) starts random and B
(out, rank) at zero, so training starts at the pretrained model. Only A and B are trained.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from cli.errors import UserError, nearest
from configs.finetune_recipe import LoraConfig
from model.transformer import Transformer


class LoraLinear(nn.Linear):
    """A linear layer with a frozen weight, under its usual name, and a trained low-rank update."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float
    dropout: float

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: LoraConfig, generator: torch.Generator) -> "LoraLinear":
        """An adapted layer that shares the weight of `linear`; A starts as in `nn.Linear`, B at zero."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.lora_A = nn.Parameter(torch.empty(config.rank, linear.in_features))
        layer.lora_B = nn.Parameter(torch.zeros(linear.out_features, config.rank))
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5), generator=generator)
        layer.scale = config.scale
        layer.dropout = config.dropout
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out)."""
        y = F.linear(x, self.weight, self.bias)
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return y + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """A plain linear layer with the update scale * B A, (out, in), added to a copy of the weight."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        update = (self.scale * self.lora_B @ self.lora_A).to(self.weight)
        linear.weight, linear.bias = nn.Parameter(self.weight + update), self.bias
        return linear


def add_lora(model: Transformer, config: LoraConfig, seed: int) -> Transformer:
    """Freeze `model` and add adapters to the target layers of every block, in place; returns it.

    Raises UserError for a rank above a dimension of a target layer, and for a target that the model
    does not have.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.layers:
        for target in config.targets:
            parent, linear = _find_target(block, target)
            smallest = min(linear.in_features, linear.out_features)
            if config.rank > smallest:
                raise UserError(f"lora.rank = {config.rank} is above {smallest}, the smaller dimension of {target}")
            setattr(parent, target, LoraLinear.from_linear(linear, config, generator))
    return model


def _find_target(block: nn.Module, target: str) -> tuple[nn.Module, nn.Linear]:
    parents = (block.get_submodule("attention"), block.get_submodule("feed_forward"))
    known = {
        name: (parent, layer)
        for parent in parents
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    }
    if target not in known:
        hint = nearest(target, list(known))
        raise UserError(f'lora.targets: this model has no layer "{target}"{hint}')
    return known[target]


def lora_layers(model: Transformer) -> dict[str, LoraLinear]:
    """The adapted layers of `model` by name."""
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, LoraLinear)}


def merge_lora(model: Transformer) -> Transformer:
    """LoRA merge: replace every adapted layer by a plain one with merged weights; returns the model."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLinear):
                setattr(parent, name, layer.merge())
    return model
