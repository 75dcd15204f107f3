"""Random attention cases and their float64 check, for the interpreter and for a GPU."""

import torch
from hypothesis import strategies as st

from kernels.attention import attention, first_keys
from kernels.attention.reference import attention_reference

BOUNDS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def relative_error(value, expected, upstream):
    """L2 error over the expected L2 norm, or over 0.3 of the norm of the upstream gradient.

    With a single key the gradients of q and k cancel to exactly 0.
    """
    norm = torch.maximum(expected.norm(), 0.3 * upstream.double().norm())
    return ((value.double() - expected).norm() / norm).item()


@st.composite
def cases(draw):
    heads = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1), (4, 1)]))
    T = draw(st.one_of(st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33]), st.integers(1, 70)))
    causal = draw(st.booleans())
    bounded = causal and draw(st.booleans())
    return {
        "seed": draw(st.integers(0, 99)),
        "B": draw(st.sampled_from([1, 1, 2])),
        "T": T,
        "S": max(1, T + draw(st.sampled_from([0, 0, 0, 1, 19] + [-20] * (not causal)))),
        "heads": heads,
        "D": draw(st.sampled_from([1, 8, 16, 24, 32, 40, 64])),
        "causal": causal,
        "window": draw(st.sampled_from([0, 1, 7, 30])) if bounded else 0,
        "documents": bounded and draw(st.booleans()),
        "dtype": draw(st.sampled_from(list(BOUNDS))),
        "layout": draw(st.sampled_from(["plain", "packed", "heads-first"])),
        "descriptor": draw(st.booleans()),
        "tiles": draw(st.sampled_from([(16, 32), (32, 16), (32, 32)])),
    }


def make_tensor(shape, generator, dtype, layout):
    B, T, heads, D = shape
    if layout == "heads-first":
        x = torch.randn(B, heads, T, D, generator=generator).transpose(1, 2)
    elif layout == "packed":  # a slice of one packed projection of q, k and v
        x = torch.randn(B, T, 2 * heads + 1, D, generator=generator)[:, :, 1 : heads + 1]
    else:
        x = torch.randn(B, T, heads, D, generator=generator)
    return x.to(dtype).requires_grad_()


def make_inputs(case, device):
    generator = torch.Generator().manual_seed(case["seed"])
    B, T, S, (H, K), D = (case[name] for name in ("B", "T", "S", "heads", "D"))
    q, k, v = (
        make_tensor(shape, generator, case["dtype"], case["layout"])
        for shape in ((B, T, H, D), (B, S, K, D), (B, S, K, D))
    )
    first = None
    if case["window"] or case["documents"]:
        ids = torch.randint(0, 4, (B, S), generator=generator).sort(1).values
        documents = ids if case["documents"] else None
        first = first_keys(T, S, window=case["window"], documents=documents).expand(B, T)
    do = torch.randn(B, T, H, D, generator=generator).to(case["dtype"])
    if first is not None:
        first = first.to(device)
    q, k, v = (x.detach().to(device).requires_grad_() for x in (q, k, v))
    return q, k, v, first, do.to(device)


def check(case, device="cpu"):
    """Compare outputs and gradients of attention on `device` with the reference in float64."""
    q, k, v, first, do = make_inputs(case, device)
    settings = {"causal": case["causal"], "first": first}
    o, lse = attention(q, k, v, **settings)
    o.backward(do)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    scale = case["D"] ** -0.5
    expected, expected_lse = attention_reference(*wide, first, case["causal"], scale)
    correction = torch.zeros_like(expected_lse)
    if case["D"] == 1:
        # The backward pass reads the rounded o; with head_dim 1 no sum averages the error out.
        # d lse / d score is p, so this yields the expected gradients for the stored o.
        correction = (do * (expected - o)).detach().sum(-1).transpose(1, 2)
    torch.autograd.backward([expected, expected_lse], [do.double(), correction])
    bound = BOUNDS[case["dtype"]]
    assert relative_error(o, expected, do) <= bound
    assert relative_error(lse, expected_lse, do) <= bound
    for name, x, y in zip("qkv", (q, k, v), wide, strict=True):
        assert relative_error(x.grad, y.grad, do) <= bound, name
