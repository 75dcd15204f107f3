"""Linear cross entropy on a CPU: values, gradients and memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.linear_cross_entropy.ops import _compute
from kernels.linear_cross_entropy.reference import linear_cross_entropy_reference


def test_chunked_linear_cross_entropy_matches_the_reference():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(37, 12, generator=generator)
    weight = torch.randn(51, 12, generator=generator)
    targets = torch.randint(0, 51, (37,), generator=generator)
    targets[[0, 5, 36]] = -100
    ours = [t.clone().requires_grad_() for t in (x, weight)]
    wide = [t.double().requires_grad_() for t in (x, weight)]
    loss, count = linear_cross_entropy(*ours, targets, chunk=8)
    expected = linear_cross_entropy_reference(*wide, targets)
    assert count == 34
    (loss / count).backward()
    (expected / 34).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(ours, wide, strict=True):
        assert (a.grad.double() - b.grad).norm() <= 1e-6 * b.grad.norm()


def test_linear_cross_entropy_without_targets_and_without_gradients():
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(7, 4)
    targets = torch.full((3,), -100)
    loss, count = linear_cross_entropy(x, weight, targets)
    loss.backward()
    assert (loss, count) == (0, 0)
    assert not x.grad.any()
    with torch.no_grad():
        loss, _ = linear_cross_entropy(x, weight, torch.tensor([1, 2, -100]))
    expected = F.cross_entropy(x @ weight.T, torch.tensor([1, 2, -100]), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_linear_cross_entropy_allocates_one_chunk_of_logits():
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(y.numel() for y in tree_leaves(result) if isinstance(y, torch.Tensor))
            return result

    x, weight = torch.randn(64, 8), torch.randn(1000, 8)
    with Sizes():  # a dispatch mode sees the calls of the implementation, but not inside the operator
        _compute(x, weight, torch.arange(64), -100, 16, True, True)
    assert max(sizes) == 16 * 1000
