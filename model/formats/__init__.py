"""Checkpoint formats: native and GGUF."""
