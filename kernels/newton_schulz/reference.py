"""The symmetric product in plain torch: the definition that the kernel is tested against."""

import torch


def symmetric_product_reference(x: torch.Tensor) -> torch.Tensor:
    """X X^T, both halves; see `symmetric_product`."""
    return x @ x.mT
