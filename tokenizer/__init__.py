"""Byte-level BPE: training, loading, inspecting."""
