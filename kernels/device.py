"""Backend selection (Triton or torch) and target architecture of the kernels.

CUDA tensors use Triton, CPU tensors use torch. `use_triton` selects Triton for CPU tensors too, which
needs Triton's interpreter (TRITON_INTERPRET=1, set before Triton is imported).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_forced = False


@contextmanager
def use_triton() -> Iterator[None]:
    """Run kernels in Triton on any device inside this context. For tests."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before


def runs_triton(x: torch.Tensor) -> bool:
    """Whether kernels on `x` run in Triton."""
    return x.is_cuda or _forced


def bypasses_dispatcher(x: torch.Tensor) -> bool:
    """Whether an operator calls its torch code directly, without torch's dispatcher.

    True for small CPU tensors (at most 65,536 elements) without gradients, as in decode: there the
    dispatch costs more than the computation (docs/log.md). False under torch.compile and under a
    dispatch mode, which counts or traces operators.
    """
    if torch.compiler.is_compiling() or x.numel() > 1 << 16 or torch.is_grad_enabled() or runs_triton(x):
        return False
    return not torch._C._len_torch_dispatch_stack()


def decomposes_for_compiler() -> bool:
    """Whether elementwise operators decompose into plain torch: True under torch.compile.

    The compiler fuses plain torch with the surrounding operations; a custom operator is opaque to it.
    """
    return torch.compiler.is_compiling() and not _forced


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU, with numpy."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def arch(x: torch.Tensor) -> str:
    """Target architecture of kernels on `x`: for example "sm_90" or "gfx942", or "interpreter".

    Raises ValueError for a tensor that is not on a GPU ("cuda", which includes AMD, or "meta").
    """
    if is_interpreted():
        return "interpreter"
    if x.device.type not in ("cuda", "meta"):
        raise ValueError(f"tensors are on {x.device}; Triton kernels need CUDA tensors")
    return _arch_of_device(x.device.index) if x.is_cuda else _current_arch()


def _current_arch() -> str:
    import triton

    target = triton.runtime.driver.active.get_current_target()
    return target.arch if target.backend == "hip" else f"sm_{target.arch}"


@cache
def _arch_of_device(index: int) -> str:
    # Asking the driver takes as long as a small launch.
    return _current_arch()


def next_power_of_2(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << (n - 1).bit_length()


def warps(arch: str, elements: int) -> int:
    """Warps for `elements` (a power of two) at 8 elements per lane, at most 512 lanes in total."""
    lanes = 64 if arch.startswith("gfx") else 32
    return max(1, min(512, elements // 8) // lanes)


def ensure_unit_stride(x: torch.Tensor) -> torch.Tensor:
    """`x` if its last dimension is contiguous, else a contiguous copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


library = torch.library.Library("homegrown", "DEF")
