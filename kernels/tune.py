"""Find the fastest attention tile sizes on this GPU, for `attention/config.py`.

    python -m kernels.tune [--length 4096] [--out kernels/results]

Parallel processes compile the candidates and compare their results with float64. Then each candidate
is timed with a causal mask, and the fastest again with a sliding window, whose bounds need
registers. A time covers the whole forward or backward pass; all candidates share the tiles that are
not varied. Writes tiles-DEVICE.json.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, get_args

import torch

from kernels.attention.config import Pass, Tiles, config
from kernels.attention.ops import first_keys
from kernels.attention.reference import attention_reference
from kernels.bench import time_call
from kernels.device import arch

SHAPES = {
    "forward": ((128, 128, 8), (128, 64, 4), (128, 64, 8), (64, 128, 4), (64, 64, 4)),
    "keys": (
        (128, 128, 8),
        (128, 64, 8),
        (64, 128, 8),
        (64, 128, 4),
        (64, 64, 8),
        (64, 64, 4),
        (32, 128, 8),
        (32, 128, 4),
        (32, 64, 4),
    ),
    "queries": ((128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 128, 8), (64, 128, 4), (64, 64, 4)),
}
DEVICE = "cuda"  # tests set "cpu" for the interpreter
WINDOW_CANDIDATES = 4  # fastest candidates, timed again with a sliding window
MAX_ERROR = 1e-2  # relative L2 error, in bfloat16


class Job(NamedTuple):
    """One candidate: the pass, head_dim, its tiles and whether a sliding window is on."""

    which: Pass
    D: int
    tiles: Tiles
    window: bool = False

    def prepare(self, B: int, T: int) -> tuple[list, Callable[[], tuple]]:
        """Inputs [q, k, v, do, first] and a function that runs the pass; (B, T, 4, D) bfloat16."""
        from kernels.attention.launch import launch_backward, launch_forward

        torch.manual_seed(0)
        shape = (B, T, 4, self.D)
        q, k, v, do = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(4))
        first = None
        if self.window:
            first = first_keys(T, window=T // 8, device=DEVICE).expand(B, T).contiguous()
        over_k, over_q = (config(arch(q), w, self.D, q.dtype) for w in ("keys", "queries"))
        if self.which == "queries":
            over_q = self.tiles
        else:
            over_k = self.tiles
        settings = (first, True, self.D**-0.5)
        o, lse = launch_forward(q, k, v, *settings)

        def forward() -> tuple:
            return launch_forward(q, k, v, *settings, tiles=self.tiles)[:1]

        def backward() -> tuple:
            return launch_backward(do, q, k, v, o, lse, *settings, (over_k, over_q))

        return [q, k, v, do, first], forward if self.which == "forward" else backward


def measure_error(job: Job, T: int = 512) -> float | str:
    """The relative L2 error of a candidate against float64, or the reason why it does not run."""
    try:
        (*bfloat16_inputs, do, first), work = job.prepare(1, T)
        q, k, v = (x.double().requires_grad_() for x in bfloat16_inputs)
        o, _ = attention_reference(q, k, v, first, True, job.D**-0.5)
        expected = (o,) if job.which == "forward" else torch.autograd.grad(o, (q, k, v), do.double())
        pairs = zip(work(), expected, strict=True)
        return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)
    except Exception as error:  # for example too much shared memory or a compiler error
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}"


def time_pass(job: Job, T: int) -> float:
    """Median of ten runs, in milliseconds, batch 8."""
    _, work = job.prepare(8, T)
    work()
    return 1e3 * statistics.median(time_call(torch.device(DEVICE), work)[1] for _ in range(10))


def main() -> None:
    """Entry point of `python -m kernels.tune`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device found: run kernels.tune on a machine with a GPU")
    name, rows = torch.cuda.get_device_name(), []
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        jobs = [
            Job(which, D, Tiles(*shape, stages, descriptor))
            for which, D in product(get_args(Pass), (64, 128))
            for shape, stages, descriptor in product(SHAPES[which], (2, 3), (True, False))
        ]
        for window in (False, True):
            errors = dict(zip(jobs, pool.map(measure_error, jobs), strict=True))
            for job, error in errors.items():
                is_correct = isinstance(error, float) and error < MAX_ERROR
                ms = time_pass(job, args.length) if is_correct else None
                rows.append({**job._asdict(), "tiles": list(job.tiles), "error": error, "ms": ms})
            timed_rows = sorted((r for r in rows if r["ms"] and r["window"] == window), key=lambda r: r["ms"])
            jobs = []
            for which, D in product(get_args(Pass), (64, 128)):
                best = [r for r in timed_rows if (r["which"], r["D"]) == (which, D)][:WINDOW_CANDIDATES]
                jobs += [Job(which, D, Tiles(*r["tiles"]), True) for r in best]
                shown = ", ".join(f"{tuple(map(int, r['tiles']))} {r['ms']:.3f}" for r in best)
                print(f"{which:8} {D:3} {'window' if window else 'causal'}: {shown}", flush=True)
    for row in rows:
        if row["ms"] is None:
            print(f"skipped: {row['which']} {row['D']} {row['tiles']}: {row['error']}")
    report = {
        "date": date.today().isoformat(),
        "device": name,
        "length": args.length,
        "versions": {p: version(p) for p in ("torch", "triton")},
        "command": f"python -m kernels.tune --length {args.length}",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"tiles-{name.replace(' ', '-')}.json"
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(json.dumps(report)[:-1] + f',\n"rows": [\n{lines}\n]}}\n')
    print(f"written: {path}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
