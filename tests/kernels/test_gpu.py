"""The kernels on a GPU. `make gpu-check` runs these tests and the benchmark."""

import pytest
import torch
from hypothesis import given, settings
from kernel_cases import BOUNDS, cases, check

from kernels.attention import attention, first_keys
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.linear_cross_entropy.reference import linear_cross_entropy_reference
from kernels.mlp import relu2, swiglu
from kernels.mlp.reference import relu2_reference, swiglu_reference
from kernels.newton_schulz import symmetric_product
from kernels.norm import rms_norm
from kernels.norm.reference import rms_norm_reference
from kernels.rope import rope
from kernels.rope.reference import rope_reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


# Each dtype compiles different kernels: separate tests compile in parallel (-n auto).
@pytest.mark.parametrize("dtype", list(BOUNDS))
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=cases())
def test_attention_equals_float64(dtype, case):
    check(case | {"dtype": dtype}, "cuda")


@pytest.mark.parametrize("D", [64, 80, 128])
@pytest.mark.parametrize("T", [1000, 2048])
def test_attention_with_shipped_tiles_on_long_sequences(D, T):
    case = {
        "seed": 0,
        "B": 2,
        "T": T,
        "S": T,
        "heads": (8, 2),
        "D": D,
        "causal": True,
        "window": 300,
        "documents": True,
        "dtype": torch.bfloat16,
        "layout": "packed",
    }
    check(case, "cuda")
    check(case | {"window": 0, "documents": False, "causal": False}, "cuda")


def test_deterministic_backward_is_bitwise_reproducible():
    q, k, v = (torch.randn(2, 1000, 4, 64, device="cuda").bfloat16() for _ in range(3))
    first = first_keys(1000, window=200, device="cuda").expand(2, -1).contiguous()
    results = []
    for _ in range(2):
        fresh = [x.clone().requires_grad_() for x in (q, k, v)]
        attention(*fresh, first=first)[0].square().sum().backward()
        results.append([x.grad for x in fresh])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def compare(ours, reference, inputs, bound=5e-3):
    narrow = [x.cuda().bfloat16().requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    found, expected = ours(*narrow), reference(*wide)
    upstream = torch.randn_like(expected)
    found.backward(upstream.to(found.dtype))
    expected.backward(upstream.to(found.dtype).double())
    pairs = [(found, expected), *((a.grad, b.grad) for a, b in zip(narrow, wide, strict=True))]
    for a, b in pairs:
        assert (a.double() - b).norm() <= bound * torch.maximum(b.norm(), 0.3 * upstream.norm())


def test_other_kernels_match_float64():
    torch.manual_seed(0)
    x, gain = torch.randn(512, 768), torch.randn(768)
    compare(lambda a, w: rms_norm(a, w, 1e-5)[0], lambda a, w: rms_norm_reference(a, w, 1e-5)[0], [x, gain])
    compare(swiglu, swiglu_reference, [x, x.flip(0)])
    compare(relu2, relu2_reference, [x])
    angles = torch.randn(50, 32, device="cuda")
    table = torch.stack([angles.cos(), angles.sin()])
    compare(
        lambda a, w: rope(a, table, w),
        lambda a, w: rope_reference(a, table, w, 1e-5),
        [torch.randn(2, 50, 6, 64), torch.randn(64)],
    )
    targets = torch.randint(0, 5000, (512,), device="cuda")
    targets[::7] = -100
    compare(
        lambda a, w: linear_cross_entropy(a, w, targets, chunk=100)[0],
        lambda a, w: linear_cross_entropy_reference(a, w, targets),
        [x, torch.randn(5000, 768) * 768**-0.5],
    )
    for shape in ((100, 1000), (12, 768, 1000)):
        matrix = torch.randn(shape, device="cuda").bfloat16()
        expected = matrix.double() @ matrix.double().mT
        found = symmetric_product(matrix)
        assert (found.double() - expected).norm() <= 5e-3 * expected.norm()
        assert torch.equal(found, found.mT)
