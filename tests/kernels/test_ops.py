"""The operators on a CPU: values, gradients, torch.compile, and error messages."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from kernels.attention import attention, first_keys
from kernels.attention.reference import attention_reference
from kernels.decode import decode_attention
from kernels.decode.reference import decode_attention_reference
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.mlp import relu2, swiglu
from kernels.newton_schulz import newton_schulz, symmetric_product
from kernels.norm import rms_norm
from kernels.rope import rope

DOCUMENTS = torch.tensor([[3] * 5 + [4] * 1 + [9] * 14, [0] * 20])


def qkv(B=2, T=20, S=None, H=4, K=2, D=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(T)
    shapes = ((B, T, H, D), (B, S or T, K, D), (B, S or T, K, D))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


CASES = {
    "causal": {},
    "full": {"causal": False},
    "window": {"first": first_keys(20, window=4).expand(2, -1)},
    "documents": {"first": first_keys(20, documents=DOCUMENTS)},
    "both": {"first": first_keys(20, window=4, documents=DOCUMENTS)},
}


@pytest.mark.parametrize("name", CASES)
def test_attention_passes_gradcheck_and_matches_the_reference(name):
    case = CASES[name]
    inputs = qkv()
    assert gradcheck(lambda *x: attention(*x, **case)[0], inputs, fast_mode=True)
    o, lse = attention(*inputs, **case)
    expected = attention_reference(*inputs, case.get("first"), case.get("causal", True), 8**-0.5)
    torch.testing.assert_close((o, lse), expected)


@pytest.mark.parametrize("T", [1, 255, 256, 257, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_queries_cover_every_length(T, dtype):
    q, k, v = qkv(B=1, T=T, S=T + 3, dtype=dtype)
    first = first_keys(T, T + 3, window=100)
    o, _ = attention(q, k, v, first=first)
    o.float().square().sum().backward()
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected, _ = attention_reference(*wide, first, True, 8**-0.5)
    expected.square().sum().backward()
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in [(o, expected), *((x.grad, y.grad) for x, y in zip((q, k, v), wide, strict=True))]:
        assert (a.double() - b).norm() <= bound * b.norm()


@pytest.mark.parametrize("T", [2, 63, 64, 65, 150])
def test_bfloat16_gradients_of_short_sequences(T):
    q, k, v = qkv(T=T, D=16, dtype=torch.bfloat16)
    o, _ = attention(q, k, v)
    do = torch.randn(o.shape, generator=torch.Generator().manual_seed(T)).to(o.dtype)
    o.backward(do)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected, _ = attention_reference(*wide, None, True, 16**-0.5)
    expected.backward(do.double())
    for x, y in zip((q, k, v), wide, strict=True):
        assert (x.grad.double() - y.grad).norm() <= 5e-3 * y.grad.norm()


def test_attention_matches_sdpa_on_packed_slices():
    packed = torch.randn(2, 33, 3, 4, 16)
    q, k, v = packed.unbind(2)
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    torch.testing.assert_close(attention(q, k, v)[0], expected)


def test_first_keys_builds_sliding_window_and_document_mask():
    assert first_keys(5, window=2).tolist() == [[0, 0, 1, 2, 3]]
    assert first_keys(2, 5, window=2).tolist() == [[2, 3]]
    assert first_keys(20, documents=DOCUMENTS)[0].tolist() == [0] * 5 + [5] + [6] * 14
    both = first_keys(20, window=3, documents=DOCUMENTS)[0].tolist()
    assert both == [0, 0, 0, 1, 2, 5, 6, 6, 6, *range(7, 18)]


def test_document_mask_hides_other_documents_bitwise():
    q, k, v = qkv(dtype=torch.float32)
    first = first_keys(20, documents=DOCUMENTS)
    results = []
    for change in (0.0, 1.0):
        moved = [x.detach().clone() for x in (q, k, v)]
        for x in moved:
            x[0, :5] += change
            x.requires_grad_()
        o, _ = attention(*moved, first=first)
        o.square().sum().backward()
        results.append([o.detach(), *(x.grad for x in moved)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a[0, 5:], b[0, 5:])
        assert not torch.equal(a[0, :5], b[0, :5])


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_other_kernels_pass_gradcheck():
    assert gradcheck(lambda x, w: rms_norm(x, w, 1e-5)[0], (double(3, 5), double(5)))
    assert gradcheck(lambda x, r, w: rms_norm(x, w, 1e-5, r), (double(3, 5), double(3, 5), double(5)))
    angles = torch.randn(4, 3, dtype=torch.float64)
    table = torch.stack([angles.cos(), angles.sin()])
    assert gradcheck(lambda x: rope(x, table), (double(2, 4, 3, 6),))
    assert gradcheck(lambda x, w: rope(x, table, w), (double(2, 4, 3, 6), double(6)))
    assert gradcheck(swiglu, (double(3, 5), double(3, 5)))
    assert gradcheck(relu2, (double(3, 5),))


def test_norm_and_rope_match_torch():
    from configs.schema import ModelConfig
    from model.rope import rope_table

    x, weight = torch.randn(2, 7, 3, 10), torch.randn(10)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6)[0], F.rms_norm(x, (10,), weight, 1e-6))
    y, h = rms_norm(x, weight, 1e-6, 2 * x)
    torch.testing.assert_close(h, 3 * x)
    torch.testing.assert_close(y, F.rms_norm(3 * x, (10,), weight, 1e-6))
    table = rope_table(ModelConfig(max_seq_len=7, head_dim=10))
    turn = torch.complex(*table)[None, :, None]

    def rotated(y):  # with complex numbers
        turned = torch.complex(*y.chunk(2, -1)) * turn
        return torch.cat([turned.real, turned.imag], -1)

    torch.testing.assert_close(rope(x, table), rotated(x))
    normed = F.rms_norm(x, (10,), weight, 1e-5)
    torch.testing.assert_close(rope(x, table, weight), rotated(normed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_direct_calls_without_gradients_match_the_operators(dtype):
    q, k, v = (x.detach() for x in qkv(T=1, S=9, dtype=dtype))
    x, h = torch.randn(2, 3, 5, 8, dtype=torch.float64).to(dtype).unbind(0)
    table, gain = torch.randn(2, 5, 4), torch.randn(8).to(dtype)
    calls = {
        "attention": lambda: attention(q, k, v),
        "norm": lambda: rms_norm(x, gain, 1e-5),
        "norm-residual": lambda: rms_norm(x, gain, 1e-5, h),
        "rope": lambda: rope(x[:, :, None], table),
        "rope-norm": lambda: rope(x[:, :, None], table, gain),
        "swiglu": lambda: swiglu(x, h),
        "relu2": lambda: relu2(x),
    }
    for name, call in calls.items():
        expected = call()
        with torch.no_grad():
            found = call()
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {}
        torch.testing.assert_close(found, expected, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_newton_schulz_makes_singular_values_near_one():
    x = torch.randn(40, 24)
    torch.testing.assert_close(symmetric_product(x), x @ x.T)
    for matrix in (x, x.T):
        values = torch.linalg.svdvals(newton_schulz(matrix))
        assert values.min() > 0.6
        assert values.max() < 1.3
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        assert (newton_schulz(matrix) * (u @ v)).sum() / 24 > 0.8
    stack = torch.stack([x, 3 * x.flip(0)])
    alone = torch.stack([newton_schulz(matrix) for matrix in stack])
    torch.testing.assert_close(newton_schulz(stack), alone)


def operators():
    q, k, v = qkv(B=1, T=6, dtype=torch.float32)
    narrow = [x.detach().bfloat16() for x in qkv(K=4)]
    backward = (narrow[0], *narrow, narrow[0], torch.zeros(2, 4, 20))
    first = first_keys(6, window=3)
    x = torch.randn(5, 8, requires_grad=True)
    weight = torch.randn(11, 8, requires_grad=True)
    gain = torch.randn(8, requires_grad=True)
    table = torch.randn(2, 6, 4)
    ops = torch.ops.homegrown
    return {
        "attention": (ops.attention, (q, k, v, None, True, 0.3)),
        "attention-window": (ops.attention, (q, k, v, first, True, 0.3)),
        "attention-backward": (ops.attention_backward, (*backward, None, True, 0.3)),
        "loss": (ops.linear_cross_entropy, (x, weight, torch.arange(5), -100, 2, True, True)),
        "norm": (ops.rms_norm, (x, None, gain, 1e-5)),
        "norm-residual": (ops.rms_norm, (x, torch.randn(5, 8, requires_grad=True), gain, 1e-5)),
        "rope": (ops.rope, (q, table, None, 1e-5)),
        "rope-norm": (ops.rope, (q, table, gain, 1e-5)),
        "swiglu": (ops.swiglu, (x, x.detach().clone().requires_grad_())),
        "relu2": (ops.relu2, (x,)),
        "symmetric": (ops.symmetric_product, (x.detach(),)),
    }


@pytest.mark.parametrize("name", operators())
def test_operators_pass_opcheck(name):
    operator, arguments = operators()[name]
    opcheck(operator.default, arguments)


def test_operators_compile_into_one_graph():
    gain, table = torch.ones(8), torch.randn(2, 6, 4)
    weight = torch.randn(11, 32, requires_grad=True)

    def everything(q, k, v, targets):
        q, k = rope(q, table, gain), rope(k, table)
        o = attention(q, k, v)[0].flatten(2).flatten(0, 1)
        h, _ = rms_norm(swiglu(o, relu2(o)), torch.ones(32), 1e-5, o)
        return linear_cross_entropy(h, weight, targets, chunk=4)[0]

    targets = torch.randint(0, 11, (12,))
    q, k, v = qkv(T=6, dtype=torch.float32)
    expected = torch.autograd.grad(everything(q, k, v, targets), (q, k, v, weight))
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(q, k, v, targets), (q, k, v, weight))
    torch.testing.assert_close(found, expected)


def test_flops_are_counted():
    q, k, v = qkv(B=1, T=6, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        attention(q, k, v)[0].sum().backward()
    assert counter.get_total_flops() == int(3.5 * 4 * 4 * 8 * 21)
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        linear_cross_entropy(x, weight, torch.arange(5))
    assert counter.get_total_flops() == 3 * 2 * 5 * 8 * 11


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


MISTAKES = {
    "q has head_dim 0": lambda: attention(*[zeros(1, 2, 2, 0)] * 3),
    "q has head_dim 129": lambda: attention(*[zeros(1, 2, 2, 129)] * 3),
    r"k is torch.float16 on cpu, q torch.float32": lambda: attention(
        zeros(1, 2, 2, 8), zeros(1, 2, 2, 8, dtype=torch.float16), zeros(1, 2, 2, 8)
    ),
    "q has 3 heads, which is not a multiple of the 2": lambda: attention(
        zeros(1, 2, 3, 8), zeros(1, 2, 2, 8), zeros(1, 2, 2, 8)
    ),
    "do not match q": lambda: attention(zeros(1, 2, 2, 8), zeros(2, 2, 2, 8), zeros(2, 2, 2, 8)),
    "q has 3 positions, more than the 2": lambda: attention(zeros(1, 3, 2, 8), zeros(1, 2, 2, 8), zeros(1, 2, 2, 8)),
    "q is float32 .* not": lambda: attention(*[zeros(2, 2, 8)] * 3),
    "window = -1 is negative": lambda: first_keys(4, window=-1),
    "documents is not sorted": lambda: first_keys(3, documents=torch.tensor([[1, 0, 2]])),
    r"documents is int64 \(1, 2\), not integers of shape \(B, 3\)": lambda: first_keys(
        3, documents=torch.tensor([[0, 1]])
    ),
    "first: a sliding window or document mask needs causal=True": lambda: attention(
        *[zeros(1, 2, 2, 8)] * 3, causal=False, first=first_keys(2, window=1)
    ),
    r"first is int64 \(1, 2\), not int32": lambda: attention(
        *[zeros(1, 2, 2, 8)] * 3, first=torch.zeros(1, 2, dtype=torch.int64)
    ),
    r"they must be \(N, C\) and \(V, C\)": lambda: linear_cross_entropy(
        zeros(2, 3), zeros(5, 4), torch.zeros(2, dtype=torch.int64)
    ),
    "targets is torch.int32": lambda: linear_cross_entropy(zeros(2, 3), zeros(5, 3), torch.zeros(2, dtype=torch.int32)),
    "chunk = -1 is negative": lambda: linear_cross_entropy(
        zeros(2, 3), zeros(5, 3), torch.zeros(2, dtype=torch.int64), chunk=-1
    ),
    r"weight is \(4,\)": lambda: rms_norm(zeros(2, 3), zeros(4), 1e-5),
    "residual is": lambda: rms_norm(zeros(2, 3), zeros(3), 1e-5, zeros(2, 4)),
    "with an even D": lambda: rope(zeros(1, 2, 3, 5), zeros(2, 2, 2)),
    "table is": lambda: rope(zeros(1, 2, 3, 6), zeros(2, 3, 3)),
    "a is torch.float32": lambda: swiglu(zeros(2), zeros(3)),
    "x is": lambda: symmetric_product(zeros(2)),
    "steps = 0": lambda: newton_schulz(zeros(2, 2), steps=0),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_error_names_the_argument(message):
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()


def test_launcher_rejects_cpu_tensors():
    pytest.importorskip("triton")
    from kernels.attention.launch import launch_forward

    q = zeros(1, 16, 1, 16)
    with pytest.raises(ValueError, match="tensors are on cpu"):
        launch_forward(q, q, q, None, True, 1.0)


def test_log_sum_exp_is_natural_and_has_no_gradient():
    q = torch.zeros(1, 3, 1, 8, requires_grad=True)
    _, lse = attention(q, q, q)
    assert lse[0, 0].tolist() == pytest.approx([0.0, math.log(2), math.log(3)])
    assert not lse.requires_grad


@pytest.mark.parametrize("window", [0, 3])
def test_decode_attention_equals_its_reference(window):
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(4, 6, 8, generator=draw, dtype=torch.float64)
    keys, values = torch.randn(2, 3 * 20, 2, 8, generator=draw, dtype=torch.float64)
    starts, positions = torch.tensor([0, 40, 40, 20]), torch.tensor([19, 0, 1, 7])
    found = decode_attention(q, keys, values, starts, positions, torch.arange(20), window)
    torch.testing.assert_close(found, decode_attention_reference(q, keys, values, starts, positions, window))
    row = decode_attention(q[3:], keys[20:28], values[20:28], None, positions[3:], torch.arange(8), window)
    torch.testing.assert_close(row, found[3:])
    with pytest.raises(ValueError, match="they must be"):
        decode_attention(q[..., :4], keys, values, starts, positions, torch.arange(20), window)
