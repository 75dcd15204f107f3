"""Symmetric product and orthogonalisation for Muon: `symmetric_product`, `newton_schulz`."""

from kernels.newton_schulz.ops import newton_schulz, symmetric_product

__all__ = ["newton_schulz", "symmetric_product"]
