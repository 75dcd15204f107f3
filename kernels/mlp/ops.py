"""Activations of a feed-forward block, recomputed in the backward pass.

SwiGLU (Shazeer 2020, arXiv:2002.05202) saves only its two inputs, squared ReLU (So et al. 2021,
arXiv:2109.08668) only its input; autograd over plain torch would save up to three more tensors.
"""

import torch
import torch.nn.functional as F

from kernels.device import bypasses_dispatcher, decomposes_for_compiler, library, runs_triton
from kernels.mlp.reference import relu2_reference, swiglu_reference


def swiglu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """silu(a) * b, elementwise; on a GPU computed in float32.

    Raises ValueError if a and b differ in shape, dtype or device.
    """
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        raise ValueError(f"a is {a.dtype} {tuple(a.shape)} on {a.device}, b {b.dtype} {tuple(b.shape)} on {b.device}")
    if bypasses_dispatcher(a) or decomposes_for_compiler():
        return swiglu_reference(a, b)
    return torch.ops.homegrown.swiglu(a, b)


def relu2(a: torch.Tensor) -> torch.Tensor:
    """max(a, 0)^2, elementwise, dtype of a."""
    if bypasses_dispatcher(a) or decomposes_for_compiler():
        return relu2_reference(a)
    return torch.ops.homegrown.relu2(a)


for signature in (
    "swiglu(Tensor a, Tensor b) -> Tensor",
    "swiglu_backward(Tensor dy, Tensor a, Tensor b) -> (Tensor, Tensor)",
    "relu2(Tensor a) -> Tensor",
    "relu2_backward(Tensor dy, Tensor a) -> Tensor",
):
    library.define(signature, tags=(torch.Tag.pt2_compliant_tag,))


def _swiglu(a, b):
    a, b = a.contiguous(), b.contiguous()
    if runs_triton(a):
        from kernels.mlp.kernel import launch_swiglu

        return launch_swiglu(a, b)
    return swiglu_reference(a, b)


def _swiglu_backward(dy, a, b):
    dy, a, b = dy.contiguous(), a.contiguous(), b.contiguous()
    if runs_triton(a):
        from kernels.mlp.kernel import launch_swiglu_backward

        return launch_swiglu_backward(dy, a, b)
    return torch.ops.aten.silu_backward(dy * b, a), F.silu(a).mul_(dy)


def _relu2(a):
    a = a.contiguous()
    if runs_triton(a):
        from kernels.mlp.kernel import launch_relu2

        return launch_relu2(a)
    return F.relu(a).square_()


def _relu2_backward(dy, a):
    dy, a = dy.contiguous(), a.contiguous()
    if runs_triton(a):
        from kernels.mlp.kernel import launch_relu2_backward

        return launch_relu2_backward(dy, a)
    return F.relu(a).mul_(2).mul_(dy)


for device in ("CPU", "CUDA"):
    library.impl("swiglu", _swiglu, device)
    library.impl("swiglu_backward", _swiglu_backward, device)
    library.impl("relu2", _relu2, device)
    library.impl("relu2_backward", _relu2_backward, device)


@torch.library.register_fake("homegrown::swiglu", lib=library)
def _fake_swiglu(a, b):
    return a.new_empty(a.shape)


@torch.library.register_fake("homegrown::swiglu_backward", lib=library)
def _fake_swiglu_backward(dy, a, b):
    return a.new_empty(a.shape), b.new_empty(b.shape)


@torch.library.register_fake("homegrown::relu2", lib=library)
def _fake_relu2(a):
    return a.new_empty(a.shape)


@torch.library.register_fake("homegrown::relu2_backward", lib=library)
def _fake_relu2_backward(dy, a):
    return a.new_empty(a.shape)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


torch.library.register_autograd(
    "homegrown::swiglu",
    lambda ctx, dy: torch.ops.homegrown.swiglu_backward(dy, *ctx.saved_tensors),
    setup_context=_save,
    lib=library,
)
torch.library.register_autograd(
    "homegrown::relu2",
    lambda ctx, dy: torch.ops.homegrown.relu2_backward(dy, *ctx.saved_tensors),
    setup_context=_save,
    lib=library,
)
