"""Corpora to documents, splits, token shards and batches."""
