"""Decode attention over a static cache: `decode_attention`."""

from kernels.decode.ops import decode_attention

__all__ = ["decode_attention"]
