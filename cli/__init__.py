"""Shared by all commands: errors, recipes and overrides, console output, atomic files."""
