"""The angles of rotary positions."""

import math

import torch

from configs.schema import ModelConfig


def rope_table(config: ModelConfig) -> torch.Tensor:
    """Cosines and sines of the rotary angles (Su et al. 2021, section 3.4.2), float32,

    (2, max_seq_len, D/2). With `rope_scaling` the slow frequencies, whose wave is longer than the
    context that the model was first trained with, turn more slowly (Llama 3.1; Grattafiori et al.
    2024, arXiv:2407.21783, section 3.4).
    """
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    frequencies = config.rope_theta ** (-pairs / config.head_dim)
    if config.rope_scaling:
        frequencies = frequencies / slowdown(frequencies, config.rope_scaling)
    positions = torch.arange(config.max_seq_len, dtype=torch.float64)
    angles = positions[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).float()


def slowdown(frequencies: torch.Tensor, scaling: list[float]) -> torch.Tensor:
    """By how much each frequency is divided; `scaling` as in `ModelConfig.rope_scaling`."""
    factor, low, high, length = scaling
    turns = length * frequencies / (2 * math.pi)  # within that context
    fast = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / (fast + (1 - fast) / factor)
