"""An exponential moving average of the weights (Polyak & Juditsky 1992), kept beside them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

Weights = dict[str, torch.Tensor]


def start_average(parameters: dict[str, nn.Parameter]) -> Weights:
    """A copy of the weights as they are."""
    return {name: p.detach().clone() for name, p in parameters.items()}


@torch.no_grad()
def update_average(average: Weights, parameters: dict[str, nn.Parameter], decay: float, step: int) -> None:
    """Average = decay * average + (1 - decay) * weights, in place, after step 1, 2, ….

    The decay is at most (1 + step) / (10 + step), so that a short run's average is not made of the
    weights it was started with.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in average.items():
        value.lerp_(parameters[name].detach(), 1 - decay)


@contextmanager
def averaged(average: Weights, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Within it the parameters are the average, if there is one."""
    _swap(average, parameters)
    try:
        yield
    finally:
        _swap(average, parameters)


@torch.no_grad()
def _swap(average: Weights, parameters: dict[str, nn.Parameter]) -> None:
    for name, value in average.items():
        kept = value.clone()
        value.copy_(parameters[name])
        parameters[name].copy_(kept)
