"""Fused output projection and cross entropy: `linear_cross_entropy`."""

from kernels.linear_cross_entropy.ops import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
