"""The attention launchers in Triton's interpreter, against float64: outputs and gradients."""

from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from kernel_cases import cases, check

from kernels import tune
from kernels.attention import attention, first_keys
from kernels.attention import launch as launchers
from kernels.attention.config import Pass, Tiles
from kernels.device import use_triton

# A failure found on a GPU: the gradient of q is mostly the rounding error of o.
ONE_NUMBER = {
    "seed": 0,
    "B": 1,
    "T": 2,
    "S": 2,
    "heads": (1, 1),
    "D": 1,
    "causal": False,
    "window": 0,
    "documents": False,
    "dtype": torch.bfloat16,
    "layout": "plain",
    "descriptor": False,
    "tiles": (16, 32),
}


@pytest.fixture
def tiles(monkeypatch):
    def use(M, N, descriptor):
        chosen = Tiles(M, N, 4, 1, descriptor)
        monkeypatch.setattr(launchers, "config", lambda *_: chosen)

    return use


@settings(max_examples=64, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(case=ONE_NUMBER)
@given(case=cases())
def test_outputs_and_gradients_equal_float64(tiles, case):
    tiles(*case["tiles"], case["descriptor"])
    with use_triton():
        check(case)


def test_document_mask_hides_other_documents_bitwise(tiles):
    tiles(16, 32, False)
    documents = torch.tensor([[0] * 21 + [1] * 30])
    first = first_keys(51, documents=documents)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 51, 2, 16) for _ in range(3))
    do = torch.randn(1, 51, 2, 16)
    results = []
    for change in (0.0, 1.0):
        shifted = [torch.cat([x[:, :21] + change, x[:, 21:]], 1).requires_grad_() for x in (q, k, v)]
        with use_triton():
            o, _ = attention(*shifted, first=first)
            o.backward(do)
        results.append([o.detach(), *(x.grad for x in shifted)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a[:, 21:], b[:, 21:])
        assert not torch.equal(a[:, :21], b[:, :21])


@pytest.mark.parametrize("which", get_args(Pass))
def test_tune_compares_candidates_with_float64(monkeypatch, which):
    monkeypatch.setattr(tune, "DEVICE", "cpu")
    job = tune.Job(which, 64, Tiles(32, 16, 4, 1), window=True)
    with use_triton():
        error = tune.measure_error(job, T=64)
        assert isinstance(error, float), error
        assert 0 < error < tune.MAX_ERROR
        assert "power of 2" in str(tune.measure_error(job._replace(tiles=Tiles(48, 16, 4, 1)), T=64))
