"""Batches of texts of different lengths."""

from collections.abc import Iterator, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence


def pad_ids(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of ids as (B, T) int64, padded with 0 at the end."""
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True)


def batch_by_length(encoded: Sequence[list[int]], size: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Indices and padded ids (B, T) of `size` texts at a time; similar lengths need little padding."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, pad_ids([encoded[i] for i in rows])
