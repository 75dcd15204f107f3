"""Byte-level BPE tokenizers and chat templates: training, loading, encoding."""
