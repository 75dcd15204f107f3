"""Checkpoint formats: native, GGUF, Hugging Face."""
