"""The document mask of packed rows: a token attends only to its own document."""

import torch


def document_starts(tokens: torch.Tensor, separator: int) -> torch.Tensor:
    """(B, T) ids -> (B, T) int32, the position of the separator that starts each token's document.

    Text before the first separator of a row is a document that starts at position 0.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.int32)
    return (positions * (tokens == separator)).cummax(1).values
