"""Fused kernels in Triton, each with its definition in plain torch. Knows no other room."""
