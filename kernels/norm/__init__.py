"""RMSNorm with an optional residual: `rms_norm`."""

from kernels.norm.ops import rms_norm

__all__ = ["rms_norm"]
