"""Benchmarks; each records its results in benchmarks/results/DEVICE."""
