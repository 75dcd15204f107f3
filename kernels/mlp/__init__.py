"""Activations of the feed-forward block: `swiglu`, `relu2`."""

from kernels.mlp.ops import relu2, swiglu

__all__ = ["relu2", "swiglu"]
