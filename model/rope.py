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
        factor, low, high, length = config.rope_scaling
        turns = length * frequencies / (2 * math.pi)  # within that context
        fast = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (fast + (1 - fast) / factor)
    positions = torch.arange(config.max_seq_len, dtype=torch.float64)
    angles = positions[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).float()
