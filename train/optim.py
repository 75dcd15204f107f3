"""Optimisers with their weight decay groups, and learning rate schedules."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from configs.schema import TrainConfig
from train.muon import Muon
from train.sharding import whole


def build_optimizers(
    parameters: dict[str, nn.Parameter],
    config: TrainConfig,
    width_ratio: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> list[torch.optim.Optimizer]:
    """One AdamW; or Muon (products in `dtype`) for the hidden matrices and AdamW for the rest."""
    if config.optimizer == "adamw":
        return [build_adamw(parameters, config, width_ratio)]
    hidden = {name: p for name, p in parameters.items() if is_hidden_matrix(name, p)}
    rest = {n: p for n, p in parameters.items() if n not in hidden}
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        optimizers.append(Muon(hidden.values(), config.learning_rate, config.weight_decay, dtype))
    return [*optimizers, build_adamw(rest, config)] if rest else optimizers


def clip_gradients(parameters: dict[str, nn.Parameter], limit: float) -> torch.Tensor:
    """Gradient clipping: scale all gradients down to a global norm of `limit`.

    Returns the norm before, a scalar on the device.
    """
    return whole(torch.nn.utils.clip_grad_norm_(parameters.values(), limit))


def skip_update_unless(is_finite: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Let the next `optimizer.step()` change nothing unless `is_finite`, a bool on the device.

    Fused AdamW reads `found_inf` as it does for torch's GradScaler, without a host sync.
    """
    optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]


def step_flops(optimizers: Sequence[torch.optim.Optimizer]) -> float:
    """FLOPs of the optimisers' matrix products in one step; AdamW has none."""
    return sum(optimizer.step_flops() for optimizer in optimizers if isinstance(optimizer, Muon))


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a matrix inside a block: both dimensions grow with the model's width."""
    return parameter.dim() == 2 and name.startswith("layers.")


def build_adamw(
    parameters: dict[str, nn.Parameter], config: TrainConfig, width_ratio: float = 1.0
) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with weight decay groups.

    Matrices decay; vectors (norm gains, biases) do not. The learning rate of hidden matrices is
    multiplied by `width_ratio` (`ModelConfig.width_ratio`) and their weight decay divided by it
    (muP; Yang et al. 2022, arXiv:2203.03466, table 8).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in parameters.items():
        decay, scale = config.weight_decay, 1.0
        if p.dim() < 2:
            decay = 0.0
        elif is_hidden_matrix(name, p):
            decay, scale = decay / width_ratio, width_ratio
        elif "embeddings." in name:
            scale = config.embedding_lr
        groups.setdefault((decay, scale), []).append(p)
    return torch.optim.AdamW(
        [{"params": ps, "weight_decay": d, "scale": s} for (d, s), ps in groups.items()],
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        fused=True,
    )


def learning_rate(progress: float, config: TrainConfig) -> float:
    """The learning rate at `progress` (0 to 1) of the run: linear warm-up, then the schedule.

    cosine: half a cosine down to `min_lr_ratio` (Loshchilov & Hutter 2017).
    wsd: constant, then a linear cool-down over the last `cooldown` (Hu et al. 2024, section 4).
    linear: a straight line down to `min_lr_ratio`.
    """
    peak, low = config.learning_rate, config.learning_rate * config.min_lr_ratio
    if progress < config.warmup:
        return peak * progress / config.warmup
    left = (1 - progress) / max(1e-9, 1 - config.warmup)
    if config.schedule == "cosine":
        left = (1 + math.cos(math.pi * min(1.0, 1 - left))) / 2
    elif config.schedule == "wsd":
        left = (1 - progress) / max(1e-9, config.cooldown)
    return low + (peak - low) * max(0.0, min(1.0, left))
