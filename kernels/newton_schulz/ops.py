"""Orthogonalising a matrix with products only, as Muon does (Jordan et al. 2024)."""

import torch
from torch.utils.flop_counter import register_flop_formula

from kernels.device import library, runs_triton
from kernels.newton_schulz.reference import symmetric_product_reference

# Quintic whose iterates bring every singular value near 1 (Jordan 2024, "Muon: An optimizer for
# hidden layers in neural networks"): fast rather than exact, values end between 0.7 and 1.2.
A, B, C = 3.4445, -4.7750, 2.0315


def symmetric_product(x: torch.Tensor) -> torch.Tensor:
    """X X^T, (M, M) for X (M, K), computing only one half on a GPU. Carries no gradient.

    Raises ValueError if x is not a matrix.
    """
    if x.dim() != 2:
        raise ValueError(f"x is {tuple(x.shape)}, not (M, K)")
    return torch.ops.homegrown.symmetric_product(x)


@torch.no_grad()
def newton_schulz(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The matrix with x's singular vectors and singular values near 1, (M, K), dtype of x.

    Raises ValueError if x is not a matrix or steps is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps} is below 1")
    tall = x.shape[0] > x.shape[-1]
    y = x.mT if tall else x
    y = y / (torch.linalg.matrix_norm(y.float()).to(y.dtype) + 1e-7)
    for _ in range(steps):
        gram = symmetric_product(y)  # the product is over the longer side
        y = A * y + (B * gram + C * symmetric_product(gram)) @ y
    return y.mT if tall else y


library.define("symmetric_product(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _compute(x):
    if not runs_triton(x):
        return symmetric_product_reference(x)
    from kernels.newton_schulz.kernel import launch_symmetric_product

    return launch_symmetric_product(x)


for device in ("CPU", "CUDA"):
    library.impl("symmetric_product", _compute, device)


@torch.library.register_fake("homegrown::symmetric_product", lib=library)
def _fake(x):
    return x.new_empty(x.shape[0], x.shape[0])


@register_flop_formula(torch.ops.homegrown.symmetric_product)
def _flops(x, **_) -> int:
    """Of the half that is computed."""
    return x[0] * (x[0] + 1) * x[1]
