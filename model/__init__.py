"""The transformer, generation, checkpoint formats."""
