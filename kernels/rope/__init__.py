"""Rotary position embedding (RoPE) with optional QK-norm: `rope`."""

from kernels.rope.ops import rope

__all__ = ["rope"]
