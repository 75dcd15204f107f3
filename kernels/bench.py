"""Time every kernel against torch's implementations, forward and backward, on this device.

    python -m kernels.bench [--case window loss …] [--dtype float32] [--out DIR]

Each round times all implementations of a case in turn. The results are medians, the middle half of
the timings, and ratios of medians. The device's ceilings are measured first, with a large matrix
product and a large copy: "roofline" is the time the slower of the two would need, as a share of the
measured time. Peak memory excludes the inputs. On a CPU the CPU paths are timed, and the output
says so. Writes kernels-DEVICE.json and kernels-DEVICE.png; committed results are in
kernels/results.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

from kernels.bench_cases import CASES, Case

T = TypeVar("T")
SLEEP = 4_000_000  # cycles, about 2 ms: longer than any launch


@dataclass
class Result:
    """One implementation of one case, forward and backward."""

    case: str
    way: str
    forward_ms: float
    forward_spread: list[float]
    """The first and third quartile of the timings, in ms."""
    backward_ms: float
    backward_spread: list[float]
    tflops: float
    gbytes: float
    """GB/s of both passes, for the minimum that must be read and written."""
    roofline: float
    peak_bytes: int
    ratio: float = 1.0
    """Time of both passes over ours."""


def synchronized_clock(device: torch.device) -> float:
    """Wall clock in seconds, after all work on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def time_call(device: torch.device, work: Callable[[], T]) -> tuple[T, float]:
    """The result of `work`, and its seconds: on a GPU the device time, with a cold cache.

    The GPU sleeps while the host launches, because in a model the host runs ahead; so launch
    overhead is excluded. `benchmarks.mfu` times whole steps.
    """
    if device.type != "cuda":
        start = synchronized_clock(device)
        return work(), synchronized_clock(device) - start
    _larger_than_cache(device).zero_()
    torch.cuda._sleep(SLEEP)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    out = work()
    end.record()
    end.synchronize()
    return out, 1e-3 * begin.elapsed_time(end)


@cache
def _larger_than_cache(device: torch.device) -> torch.Tensor:
    return torch.empty(1 << 28, dtype=torch.uint8, device=device)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Measured FLOP/s of a large matrix product, and bytes/s of a large copy."""
    n = 8192 if device.type == "cuda" else 3072
    a = torch.randn(n, n, device=device, dtype=dtype)
    out = torch.empty_like(a)
    source = torch.randn(n * n * 4, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    products, copies = [], []
    for _ in range(12):
        start = synchronized_clock(device)
        torch.mm(a, a, out=out)
        middle = synchronized_clock(device)
        target.copy_(source)
        products.append(middle - start)
        copies.append(synchronized_clock(device) - middle)
    return 2 * n**3 / min(products), 2 * source.nbytes / min(copies)


def measure_peak(device: torch.device, work: Callable[[], object]) -> int:
    """Peak bytes that `work` allocates beyond the memory in use before; the median of five runs."""
    return int(statistics.median(_peak(device, work) for _ in range(5)))


def _peak(device: torch.device, work: Callable[[], object]) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return 0
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else the pass could reuse freed memory unnoticed

    def resident(field: str) -> int:
        return int(Path("/proc/self/status").read_text(encoding="utf-8").split(field)[1].split()[0]) * 1024

    clear.write_text("5", encoding="utf-8")  # resets VmHWM
    before = resident("VmRSS:")
    work()
    return resident("VmHWM:") - before


def run(case: Case, device: torch.device, dtype: torch.dtype, rounds: int, roof: tuple[float, float]) -> list[Result]:
    """Time all implementations of one case in turn."""
    setups = {}
    for name, implementation in case.implementations(device).items():
        torch.manual_seed(0)
        setups[name] = implementation, case.inputs(device, dtype)
    timings: dict[str, list[tuple[float, float]]] = {}
    peaks = {}

    def time_both_passes(name: str) -> tuple[float, float]:
        implementation, inputs = setups[name]
        for x in inputs:
            x.grad = None
        out, forward = time_call(device, partial(implementation, *inputs))
        _, backward = time_call(device, partial(out.backward, torch.ones_like(out)))
        return forward, backward

    for name in setups:
        try:
            time_both_passes(name)
        except (RuntimeError, NotImplementedError) as error:
            print(f"{case.name}: {name} is skipped: {str(error).splitlines()[0]}")
            continue
        peaks[name] = measure_peak(device, partial(time_both_passes, name))
        timings[name] = []
    for _ in range(rounds):
        for name, passes in timings.items():
            passes.append(time_both_passes(name))
    flops, size = case.cost(dtype)
    product, copy = roof
    results = []
    for name, passes in timings.items():
        forwards, backwards = ([1e3 * seconds for seconds in column] for column in zip(*passes, strict=True))
        forward, backward = statistics.median(forwards), statistics.median(backwards)
        seconds = 1e-3 * (forward + backward)
        results.append(
            Result(
                case=case.name,
                way=name,
                forward_ms=forward,
                forward_spread=_quartiles(forwards),
                backward_ms=backward,
                backward_spread=_quartiles(backwards),
                tflops=flops / seconds / 1e12,
                gbytes=size / seconds / 1e9,
                roofline=max(flops / product, size / copy) / seconds,
                peak_bytes=peaks[name],
            )
        )
    ours = results[0].forward_ms + results[0].backward_ms
    for result in results:
        result.ratio = (result.forward_ms + result.backward_ms) / ours
    return results


def _quartiles(times: list[float]) -> list[float]:
    # Quartiles need two values: a single round has no spread.
    return statistics.quantiles(times * (2 if len(times) == 1 else 1), n=4)[::2]


def show(results: list[Result]) -> None:
    """Print the table rows of one case."""
    for r in results:
        print(
            f"{r.case:26}{r.way:16}{r.forward_ms:9.2f}{r.backward_ms:9.2f}{r.ratio:7.2f}x"
            f"{r.tflops:9.3f}{r.gbytes:8.1f}{r.roofline:7.0%}{r.peak_bytes / 2**20:9.0f}",
            flush=True,
        )


def plot(results: list[Result], device: str, path: Path) -> None:
    """Draw the time ratios as a bar chart."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is missing; run pip install -e '.[compare]'")
        return
    others = [r for r in results if r.way != "ours"]
    figure = Figure(figsize=(8, 1 + 0.3 * len(others)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{r.case}: {r.way}" for r in others]
    bars = axes.barh(labels, [r.ratio for r in others], color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linestyle="--")
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.set_title(f"time relative to ours, forward and backward, {device}", fontsize=10)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Entry point of `python -m kernels.bench`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(case.name for case in CASES)
    parser.add_argument("--case", nargs="+", choices=names, default=names)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rounds", type=int, default=0, help="default: 7 on a CPU, 30 on a GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = getattr(torch, args.dtype or ("bfloat16" if cuda else "float32"))
    rounds = args.rounds or (30 if cuda else 7)
    name = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores"
    note = "" if cuda else "; no GPU found: these are the CPU paths, no Triton kernel ran"
    print(f"{name}, {args.dtype or dtype}, medians of {rounds} rounds{note}")
    roof = measure_ceilings(device, dtype)
    product, copy = roof[0] / 1e12, roof[1] / 1e9
    print(f"ceilings: {product:.3f} TFLOP/s in a matrix product, {copy:.1f} GB/s in a copy")
    print(
        f"{'case':26}{'implementation':15}{'forward ms':>10}{'backward':>9}{'ratio':>8}{'TFLOP/s':>9}"
        f"{'GB/s':>8}{'roof':>7}{'peak MiB':>9}"
    )
    results = []
    for case in CASES:
        if case.name in args.case:
            found = run(case, device, dtype, rounds, roof)
            show(found)
            results += found
    load = None
    if sys.platform != "win32":
        load = os.getloadavg()[0]
    report = {
        "date": date.today().isoformat(),
        "device": name,
        "dtype": str(dtype).removeprefix("torch."),
        "rounds": rounds,
        "ceilings": {"tflops": product, "gbytes": copy},
        "command": f"python -m kernels.bench {' '.join(sys.argv[1:])}".strip(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": version("triton") if cuda else "not used",
        },
        "load_average": load,
        "results": [vars(r) for r in results],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"kernels-{name.replace(' ', '-')}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    plot(results, name, path.with_suffix(".png"))
    print(f"written: {path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
