"""The angles of rotary position embeddings (RoPE)."""

import math

import torch

from configs.schema import ModelConfig


def rope_table(config: ModelConfig) -> torch.Tensor:
    """(2, max_seq_len, D/2) float32 cosines and sines (Su et al. 2021, section 3.4.2).

    `rope_scaling` lowers the frequencies whose wavelength exceeds the original context length
    (Llama 3.1; Grattafiori et al. 2024, arXiv:2407.21783, section 3.4).
    """
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    frequencies = config.rope_theta ** (-pairs / config.head_dim)
    if config.rope_scaling:
        frequencies = frequencies / rope_divisors(frequencies, config.rope_scaling)
    positions = torch.arange(config.max_seq_len, dtype=torch.float64)
    angles = positions[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).float()


def rope_divisors(frequencies: torch.Tensor, scaling: list[float]) -> torch.Tensor:
    """Divisor of each frequency under Llama 3.1 scaling; `scaling`: see `ModelConfig.rope_scaling`."""
    factor, low, high, length = scaling
    turns = length * frequencies / (2 * math.pi)  # rotations within the original context
    fast = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / (fast + (1 - fast) / factor)
