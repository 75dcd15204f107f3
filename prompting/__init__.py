"""What changes only the input of a model."""
