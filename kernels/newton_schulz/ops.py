"""Newton-Schulz orthogonalisation with matrix products only, as in Muon (Jordan et al. 2024)."""

import math

import torch
from torch.utils.flop_counter import register_flop_formula

from kernels.device import library, runs_triton
from kernels.newton_schulz.reference import symmetric_product_reference

# Quintic iteration that moves every singular value near 1 (Jordan 2024, "Muon: An optimizer for
# hidden layers in neural networks"): fast, not exact; the values end between 0.7 and 1.2.
A, B, C = 3.4445, -4.7750, 2.0315


def symmetric_product(x: torch.Tensor) -> torch.Tensor:
    """X X^T, (…, M, M) for X (…, M, K); a GPU computes only one half. No gradient.

    Raises ValueError if x is not (M, K) or (B, M, K).
    """
    _check(x)
    return torch.ops.homegrown.symmetric_product(x)


@torch.no_grad()
def newton_schulz(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Orthogonalise x: same singular vectors, singular values near 1; (…, M, K), dtype of x.

    Raises ValueError if x is not (M, K) or (B, M, K), or if steps < 1.
    """
    _check(x)
    if steps < 1:
        raise ValueError(f"steps = {steps} is below 1")
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = y if x.dim() == 3 else y[None]
    y = y / (torch.linalg.matrix_norm(y.float(), keepdim=True).to(y.dtype) + 1e-7)
    for _ in range(steps):
        gram = symmetric_product(y)  # sums over the longer side
        mix = symmetric_product(gram).mul_(C).add_(gram, alpha=B)
        y = torch.baddbmm(y, mix, y, beta=A)
    y = y.mT if tall else y
    return y if x.dim() == 3 else y[0]


def _check(x: torch.Tensor) -> None:
    if x.dim() not in (2, 3):
        raise ValueError(f"x is {tuple(x.shape)}, not (M, K) or (B, M, K)")


library.define("symmetric_product(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _compute(x):
    if not runs_triton(x):
        return symmetric_product_reference(x)
    from kernels.newton_schulz.kernel import launch_symmetric_product

    return launch_symmetric_product(x) if x.dim() == 3 else launch_symmetric_product(x[None])[0]


for device in ("CPU", "CUDA"):
    library.impl("symmetric_product", _compute, device)


@torch.library.register_fake("homegrown::symmetric_product", lib=library)
def _fake(x):
    return x.new_empty(*x.shape[:-1], x.shape[-2])


@register_flop_formula(torch.ops.homegrown.symmetric_product)
def _flops(x, **_) -> int:
    """FLOPs of the half that is computed on a GPU."""
    *batch, M, K = x
    return math.prod(batch) * M * (M + 1) * K
