"""Symmetric products and orthogonalisation for Muon."""

from kernels.newton_schulz.ops import newton_schulz, symmetric_product

__all__ = ["newton_schulz", "symmetric_product"]
