"""The launchers, interpreted, against float64 eager attention: outputs and all gradients."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from kernel_cases import cases, check

from kernels.attention import attention, first_keys
from kernels.attention import launch as launchers
from kernels.attention.config import Tiles
from kernels.device import use_triton


@pytest.fixture
def tiles(monkeypatch):
    def use(M, N, descriptor):
        chosen = Tiles(M, N, 4, 1, descriptor)
        monkeypatch.setattr(launchers, "config", lambda *_: chosen)

    return use


@settings(
    max_examples=64, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(case=cases())
def test_outputs_and_gradients_equal_float64(tiles, case):
    tiles(*case["tiles"], case["descriptor"])
    with use_triton():
        check(case)


def test_another_document_changes_not_a_bit(tiles):
    tiles(16, 32, False)
    documents = torch.tensor([[0] * 21 + [1] * 30])
    first = first_keys(51, documents=documents)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 51, 2, 16) for _ in range(3))
    do = torch.randn(1, 51, 2, 16)
    results = []
    for change in (0.0, 1.0):
        shifted = [
            torch.cat([x[:, :21] + change, x[:, 21:]], 1).requires_grad_() for x in (q, k, v)
        ]
        with use_triton():
            o, _ = attention(*shifted, first=first)
            o.backward(do)
        results.append([o.detach(), *(x.grad for x in shifted)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a[:, 21:], b[:, 21:])
        assert not torch.equal(a[:, :21], b[:, :21])
