"""The symmetric product in plain torch."""

import torch


def symmetric_product_reference(x: torch.Tensor) -> torch.Tensor:
    """X X^T, both halves computed; see `symmetric_product`."""
    return x @ x.mT
