"""TOML recipes and their schemas."""
