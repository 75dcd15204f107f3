"""Elementwise functions and constants that several Triton kernels use."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tanh(x, FAST: tl.constexpr):
    """Hyperbolic tangent; FAST uses NVIDIA's tanh.approx (error 2^-11, enough for bfloat16)."""
    if FAST:
        t = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        e = tl.exp2(tl.abs(x) * (-2 * 1.4426950408889634))
        t = tl.where(x < 0, (e - 1) / (1 + e), (1 - e) / (1 + e))
    return t
