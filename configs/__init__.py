"""TOML recipes and their schema."""
