"""Checkpoint formats: native, GGUF and Hugging Face."""
