"""QK-norm and rotary positions: `rope`."""

from kernels.rope.ops import rope

__all__ = ["rope"]
