"""The transformer, generation and checkpoint formats."""
