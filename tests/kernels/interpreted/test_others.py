"""All launchers except attention in Triton's interpreter, against float64 torch: values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.decode import decode_attention
from kernels.decode.reference import decode_attention_reference
from kernels.device import use_triton
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.linear_cross_entropy.reference import linear_cross_entropy_reference
from kernels.mlp import relu2, swiglu
from kernels.mlp.reference import relu2_reference, swiglu_reference
from kernels.newton_schulz import newton_schulz, symmetric_product
from kernels.norm import rms_norm
from kernels.norm.reference import rms_norm_reference
from kernels.rope import rope
from kernels.rope.reference import rope_reference

BOUNDS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
DTYPES = st.sampled_from(list(BOUNDS))
few = settings(max_examples=25, deadline=None, derandomize=True)


def compare(ours, reference, inputs, dtype, *fixed, terms=None):
    """Compare outputs and gradients of `ours` in Triton and `dtype` with `reference` in float64.

    `terms` gives, of the inputs and the upstream gradient, the terms of a gradient that may cancel.
    """
    narrow = [x.to(dtype).requires_grad_() for x in inputs]
    wide = [x.to(dtype).double().requires_grad_() for x in inputs]
    with use_triton():
        found = ours(*narrow, *fixed)
        torch.manual_seed(1)
        weights = [torch.randn(y.shape).to(dtype) for y in found]
        gradients = torch.autograd.grad(found, narrow, weights)
    expected = reference(*wide, *fixed)
    wanted = torch.autograd.grad(expected, wide, [w.double() for w in weights])
    upstream = sum(w.double().norm() for w in weights)  # the size of terms that may cancel
    if terms:
        upstream = torch.maximum(upstream, terms(*wide, weights[0].double()).norm())
    for a, b in zip((*found, *gradients), (*expected, *wanted), strict=True):
        norm = torch.maximum(b.norm(), 0.3 * upstream)
        assert (a.double() - b).norm() <= BOUNDS[dtype] * norm


@few
@given(st.integers(1, 9), st.integers(1, 70), st.booleans(), DTYPES)
def test_norm(rows, width, residual, dtype):
    torch.manual_seed(rows)
    inputs = [torch.randn(rows, width), torch.randn(width)]
    if residual:
        inputs.append(torch.randn(rows, width))
        compare(
            lambda x, w, r: rms_norm(x, w, 1e-5, r), lambda x, w, r: rms_norm_reference(x, w, 1e-5, r), inputs, dtype
        )
    else:
        # At width 1 the gradient is the rounding error left of dy * w / rms(x) after cancellation.
        terms = (lambda x, w, dy: dy * w * (x.pow(2) + 1e-5).rsqrt()) if width == 1 else None
        norm, reference = (lambda x, w, f=f: f(x, w, 1e-5)[:1] for f in (rms_norm, rms_norm_reference))
        compare(norm, reference, inputs, dtype, terms=terms)


@few
@given(st.integers(1, 2), st.integers(1, 9), st.integers(1, 5), st.integers(1, 20), st.booleans(), DTYPES)
def test_rope(batch, T, heads, half, norm, dtype):
    torch.manual_seed(T)
    inputs = [torch.randn(batch, heads, T, 2 * half).transpose(1, 2)]
    angles = torch.randn(T, half)
    table = torch.stack([angles.cos(), angles.sin()])
    if norm:
        inputs.append(torch.randn(2 * half))
        compare(lambda x, w: (rope(x, table, w),), lambda x, w: (rope_reference(x, table, w, 1e-5),), inputs, dtype)
    else:
        compare(lambda x: (rope(x, table),), lambda x: (rope_reference(x, table, None, 1e-5),), inputs, dtype)


@few
@given(st.integers(1, 3000), DTYPES)
def test_activations(size, dtype):
    torch.manual_seed(size)
    inputs = [torch.randn(size), torch.randn(size)]
    compare(lambda a, b: (swiglu(a, b),), lambda a, b: (swiglu_reference(a, b),), inputs, dtype)
    compare(lambda a: (relu2(a),), lambda a: (relu2_reference(a),), inputs[:1], dtype)


@few
@given(st.integers(1, 20), st.integers(2, 300), st.integers(1, 9))
def test_linear_cross_entropy(rows, vocabulary, chunk):
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 16), torch.randn(vocabulary, 16)
    targets = torch.randint(0, vocabulary, (rows,))
    targets[0] = -100
    ours, reference = (
        lambda x, w: linear_cross_entropy(x, w, targets, chunk=chunk)[:1],
        lambda x, w: (linear_cross_entropy_reference(x, w, targets),),
    )
    # The gradient of x is p W minus the target's row of W: for a sure prediction it cancels.
    compare(ours, reference, [x, weight], torch.float32, terms=lambda x, w, dy: dy * w.norm(dim=1).max())


@pytest.mark.parametrize("shape", [(1, 1), (63, 20), (64, 64), (150, 70), (300, 33), (3, 40, 65)])
@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_symmetric_product(shape, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    for matrix in (x, x.mT.contiguous().mT):
        with use_triton():
            found = symmetric_product(matrix)
        expected = matrix.double() @ matrix.double().mT
        assert (found.double() - expected).norm() <= BOUNDS[dtype] * expected.norm()
        assert torch.equal(found, found.mT)


def test_newton_schulz():
    x = torch.randn(70, 130)
    expected = newton_schulz(x)
    with use_triton():
        found = newton_schulz(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.sampled_from([(1, 1), (4, 2), (9, 3), (40, 2)]),
    st.sampled_from([8, 24, 64, 128]),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 299)), min_size=1, max_size=3),
    st.sampled_from([0, 1, 70]),
    DTYPES,
)
def test_decode_attention(heads, D, tokens, window, dtype):
    draw = torch.Generator().manual_seed(D)
    q = torch.randn(len(tokens), heads[0], D, generator=draw).to(dtype)
    keys, values = torch.randn(2, 3 * 300, heads[1], D, generator=draw).to(dtype)
    rows, positions = torch.tensor(tokens).unbind(1)
    with use_triton(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernels.decode.kernel.SPLITS", 4)  # the interpreter runs one program after the other
        found = decode_attention(q, keys, values, rows * 300, positions, torch.arange(300), window)
    expected = decode_attention_reference(q.double(), keys, values, rows * 300, positions, window)
    assert (found.double() - expected).norm() <= 2 * BOUNDS[dtype] * expected.norm()
