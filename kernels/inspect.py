"""Compile every kernel ahead of time, without a GPU, and report its resource usage.

    python -m kernels.inspect [--arch sm_80 sm_90 sm_100 gfx942] [--kernel attention …]

The real launchers run on meta tensors with a stub driver that names the architecture: each kernel is
compiled but not launched. The tools that come with Triton report registers, spilled registers
(bytes), shared memory (bytes), tensor memory (columns, of 512) and matrix instructions.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
SHARED_LIMIT = {
    "sm_80": 166_912,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}
MATRIX = ("HMMA", "HGMMA", "UTCHMMA", "v_mfma")  # mma of sm_8x, wgmma of sm_90, tcgen05 of sm_100, AMD


class Compiled(NamedTuple):
    """Resource usage of one kernel, compiled for one architecture with one set of settings."""

    arch: str
    kernel: str
    settings: dict
    registers: int
    spilled: int
    """Bytes per thread."""
    shared: int
    """Bytes per program."""
    tensor_memory: int
    """Columns; a kernel that needs more than 512 traps at run time."""
    matrix: dict[str, int]
    """Number of matrix instructions per opcode."""


def stub_driver(arch: str) -> SimpleNamespace:
    """The part of a Triton driver that compilation needs; nothing is launched."""
    from triton.backends.compiler import GPUTarget

    is_nvidia = arch.startswith("sm_")
    target = GPUTarget("cuda", int(arch[3:]), 32) if is_nvidia else GPUTarget("hip", arch, 64)
    return SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: arch,  # the JIT cache uses it as a key
        get_current_stream=lambda device=0: 0,
    )


@contextmanager
def compiling(arch: str) -> Iterator[list[Compiled]]:
    """Make each kernel launch compile for `arch` and append to the yielded list instead."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    import triton
    from triton.runtime.jit import JITFunction

    found: list[Compiled] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        if any(isinstance(t, tuple) and "tensordesc" in str(t) for t in compiled.src.signature.values()):
            raise TypeError(f"{self.fn.__name__}: Triton 3.6 cannot launch a descriptor in a tuple")
        chosen = {p.name for p in self.params if p.is_constexpr} | {"num_warps", "num_stages"}
        settings = {name: value for name, value in options.items() if name in chosen}
        found.append(Compiled(arch, self.fn.__name__, settings, *_measure(compiled)))
        return compiled

    before = triton.runtime.driver._active  # `reset_active` would search for a GPU
    triton.runtime.driver.set_active(stub_driver(arch))
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run = run
        triton.runtime.driver.set_active(before)


def _measure(compiled) -> tuple[int, int, int, int, dict[str, int]]:
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]

        def number(name: str) -> int:
            return int(re.findall(rf"\.{name}:\s+(\d+)", text)[0])

        registers, spilled = number("vgpr_count"), 4 * number("vgpr_spill_count")
    else:
        import triton

        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
            text = _output(tools / "nvdisasm", "-c", file.name)
        registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
        # A stack without any store (STL) only holds a return address: nothing is spilled.
        spilled = stack if re.search(r"\bSTL\b", text) else 0
    matrix = {name: len(re.findall(rf"\b{name}", text)) for name in MATRIX}
    tensor_memory = getattr(compiled.metadata, "tmem_size", 0) or 0
    shared = compiled.metadata.shared
    return registers, spilled, shared, tensor_memory, {k: n for k, n in matrix.items() if n}


def _output(*command) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def compile_attention() -> None:
    """Head dims 64 and 128, with and without mask."""
    from kernels.attention.launch import launch_backward, launch_forward

    half, single = torch.bfloat16, torch.float32
    for dtype, D, bounded in (
        (half, 64, False),
        (half, 64, True),
        (half, 128, False),
        (half, 128, True),
        (single, 64, False),
        (single, 128, False),
    ):
        q, kv = _empty(2, 1024, 8, D, dtype=dtype), _empty(2, 1024, 4, D, dtype=dtype)
        first = _empty(2, 1024, dtype=torch.int32) if bounded else None
        o, lse = launch_forward(q, kv, kv, first, True, D**-0.5)
        launch_backward(q, q, kv, kv, o, lse, first, True, D**-0.5)


def compile_decode() -> None:
    """Head dims 64 and 128, two dtypes."""
    from kernels.decode.kernel import launch_decode

    at = _empty(4, dtype=torch.int64)
    for dtype, D in product((torch.bfloat16, torch.float32), (64, 128)):
        q, keys = _empty(4, 8, D, dtype=dtype), _empty(4096, 2, D, dtype=dtype)
        launch_decode(q, keys, keys, at, at, 0, D**-0.5)


def compile_linear_cross_entropy() -> None:
    """Only the loss: the matrix products use the library."""
    from kernels.linear_cross_entropy.kernel import launch_cross_entropy

    targets = _empty(1024, dtype=torch.int64)
    launch_cross_entropy(_empty(1024, 49152), targets, -100, True)


def compile_norm() -> None:
    """With and without a residual."""
    from kernels.norm.kernel import launch_norm, launch_norm_backward

    x, weight = _empty(4096, 768), _empty(768, dtype=torch.float32)
    for residual in (None, x):
        _, h, rstd = launch_norm(x, residual, weight, 1e-5)
        launch_norm_backward(x, residual, h, weight, rstd)


def compile_rope() -> None:
    """With and without QK-norm."""
    from kernels.rope.kernel import launch_rope, launch_rope_backward

    x, table = _empty(2, 1024, 8, 64), _empty(2, 1024, 32, dtype=torch.float32)
    for weight in (None, _empty(64, dtype=torch.float32)):
        launch_rope(x, table, weight, 1e-5)
        launch_rope_backward(x, x, table, weight, 1e-5)


def compile_mlp() -> None:
    """Both activations."""
    from kernels.mlp.kernel import launch_relu2, launch_relu2_backward, launch_swiglu, launch_swiglu_backward

    a = _empty(4096, 2048)
    launch_swiglu(a, a)
    launch_swiglu_backward(a, a, a)
    launch_relu2(a)
    launch_relu2_backward(a, a)


def compile_newton_schulz() -> None:
    """The symmetric product."""
    from kernels.newton_schulz.kernel import launch_symmetric_product

    launch_symmetric_product(_empty(12, 768, 3072))


KERNELS: dict[str, Callable[[], None]] = {
    "attention": compile_attention,
    "decode": compile_decode,
    "linear_cross_entropy": compile_linear_cross_entropy,
    "norm": compile_norm,
    "rope": compile_rope,
    "mlp": compile_mlp,
    "newton_schulz": compile_newton_schulz,
}


def compile_for(arch: str, kernel: str) -> list[Compiled]:
    """Every kernel that one row of KERNELS launches, compiled for `arch`."""
    with compiling(arch) as found:
        KERNELS[kernel]()
    return found


def compile_all(architectures: Sequence[str], kernels: Iterable[str]) -> Iterator[Compiled]:
    """Compile all combinations, in order, with one process per core."""
    work = list(product(architectures, kernels))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for found in pool.map(compile_for, *zip(*work, strict=True)):
            yield from found


def main() -> None:
    """Entry point of `python -m kernels.inspect`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=sorted(SHARED_LIMIT), default=ARCHITECTURES)
    parser.add_argument("--kernel", nargs="+", choices=list(KERNELS), default=list(KERNELS))
    args = parser.parse_args()
    print(f"{'':8}{'kernel':22}{'regs':>5}{'spill':>6}{'shared':>8}{'tmem':>5}  matrix, settings")
    for row in compile_all(args.arch, args.kernel):
        matrix = " ".join(f"{k}:{n}" for k, n in row.matrix.items())
        settings = " ".join(f"{k}={v}" for k, v in row.settings.items())
        print(
            f"{row.arch:8}{row.kernel:22}{row.registers:5}{row.spilled:6}"
            f"{row.shared:8}{row.tensor_memory:5}  {matrix}  {settings}",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
