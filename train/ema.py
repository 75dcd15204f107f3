"""EMA: an exponential moving average of the weights (Polyak & Juditsky 1992)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

Weights = dict[str, torch.Tensor]


def start_ema(parameters: dict[str, nn.Parameter]) -> Weights:
    """A copy of the current weights."""
    return {name: p.detach().clone() for name, p in parameters.items()}


@torch.no_grad()
def update_ema(ema: Weights, parameters: dict[str, nn.Parameter], decay: float, step: int) -> None:
    """Update the EMA in place after `step` (1, 2, …): ema = decay * ema + (1 - decay) * weights.

    The decay is at most (1 + step) / (10 + step), so that the initial weights have little influence
    in a short run.
    """
    decay = min(decay, (1 + step) / (10 + step))
    if ema:
        torch._foreach_lerp_(list(ema.values()), [parameters[name].detach() for name in ema], 1 - decay)


@contextmanager
def ema_weights(ema: Weights, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Use the EMA, if there is one, as the model's weights inside the `with` block."""
    _swap(ema, parameters)
    try:
        yield
    finally:
        _swap(ema, parameters)


@torch.no_grad()
def _swap(ema: Weights, parameters: dict[str, nn.Parameter]) -> None:
    for name, value in ema.items():
        kept = value.clone()
        value.copy_(parameters[name])
        parameters[name].copy_(kept)
