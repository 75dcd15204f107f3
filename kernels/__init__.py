"""Fused kernels and their plain-torch references."""
