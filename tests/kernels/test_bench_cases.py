"""The cases that `kernels.bench` adds on a GPU, at small sizes on the CPU."""

import pytest
import torch

from kernels.bench_cases import length_cases

CASES = length_cases(512, (128, 256))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_implementation_computes_the_same(case):
    device = torch.device("cpu")
    inputs = case.inputs(device, torch.float32)
    (_, ours), *others = case.implementations(device).items()
    assert others
    expected = ours(*inputs)
    for _, other in others:
        torch.testing.assert_close(other(*inputs), expected, atol=1e-5, rtol=1e-4)
    assert min(case.cost(torch.bfloat16)) > 0


def test_all_lengths_have_as_many_tokens():
    shapes = [case.inputs(torch.device("cpu"), torch.float32)[0].shape for case in CASES]
    assert {shape[0] * shape[1] for shape in shapes} == {512}
    assert {shape[2] for shape in shapes} == {12, 32}
