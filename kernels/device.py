"""Which way a kernel is computed, and for which architecture it is compiled.

CUDA tensors go to Triton and CPU tensors to torch; `use_triton` sends the CPU's to Triton as well,
which needs its interpreter (TRITON_INTERPRET=1, set before Triton is imported).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_forced = False


@contextmanager
def use_triton() -> Iterator[None]:
    """Within it, kernels run in Triton on any device. For tests."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before


def runs_triton(x: torch.Tensor) -> bool:
    """Whether the kernels of `x` are Triton's."""
    return x.is_cuda or _forced


def called_plainly(x: torch.Tensor) -> bool:
    """Whether an operator's torch code is called as it is, past torch's dispatcher.

    So it is for a token or few without gradients on a CPU, where the call would cost more than the
    work (docs/log.md); not while a mode that counts or traces operators looks on.
    """
    if x.numel() > 1 << 16 or torch.is_grad_enabled() or runs_triton(x):
        return False
    return not (torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack())


def left_to_compiler() -> bool:
    """Whether elementwise operators are written out in torch, as they are for torch.compile.

    It fuses such code with what stands around it, which it cannot do with an operator of ours.
    """
    return torch.compiler.is_compiling() and not _forced


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU, in numpy."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def arch(x: torch.Tensor) -> str:
    """What kernels on `x` are compiled for: "sm_90", "gfx942" or "interpreter".

    Raises ValueError for a tensor that no GPU driver of Triton's can take.
    """
    if interpreted():
        return "interpreter"
    if x.device.type not in ("cuda", "meta"):
        raise ValueError(f"tensors are on {x.device}; Triton's kernels take CUDA tensors")
    import triton

    target = triton.runtime.driver.active.get_current_target()
    return target.arch if target.backend == "hip" else f"sm_{target.arch}"


def power_of_2(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << (n - 1).bit_length()


def warps(arch: str, elements: int) -> int:
    """How many share `elements` (a power of two) at 8 to a lane, at most 512 lanes in all."""
    lanes = 64 if arch.startswith("gfx") else 32
    return max(1, min(512, elements // 8) // lanes)


def unit_stride(x: torch.Tensor) -> torch.Tensor:
    """Itself if its last dimension is contiguous, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


library = torch.library.Library("homegrown", "DEF")
