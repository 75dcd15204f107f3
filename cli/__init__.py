"""What every command needs: errors, recipes and overrides, progress lines, safe output files."""
