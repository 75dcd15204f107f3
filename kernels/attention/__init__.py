"""Fused attention: `attention`, `first_keys`."""

from kernels.attention.ops import attention, first_keys

__all__ = ["attention", "first_keys"]
