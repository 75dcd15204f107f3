"""Scaling of the step time with ranks, model size and sequence length.

    python -m benchmarks.scaling [--steps 12]

Runs `train.pretrain` on folk-tunes with configs/speedrun-4m.toml, changing one setting at a time,
2,048 tokens per step. Widths and lengths use one thread. The speed-up of one rank per core, with one
thread each, is compared to that of one rank with one thread per core. The exponent is the slope of a
linear fit of log median step time against log parameters (or log length). Writes
benchmarks/results/DEVICE/scaling.json.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.record import record
from train.metrics import read_metrics

RECIPE = "configs/speedrun-4m.toml"
TOKENS = 2048


def run_steps(recipe: str, steps: int, *overrides: str, ranks: int = 1, threads: int = 0) -> list:
    """Train `recipe` for `steps` steps; returns the rows of metrics.jsonl, each with `step_seconds`.

    Uses `torchrun` if there is more than one rank. Every rank has `threads` threads; 0 divides the
    cores evenly among ranks. Raises CalledProcessError if the run fails.
    """
    threads = threads or max(1, (os.cpu_count() or 1) // ranks)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        own = [f"--train.steps={steps}", "--train.eval-every=1000000", "--train.save-every=1000000"]
        only = ["--sample.max-new-tokens=1", "--sample.num-samples=1", f"--run-dir={run}"]
        subprocess.run(
            [sys.executable, *torchrun, "-m", "train.pretrain", recipe, *own, *only, *overrides],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        rows = [row for row in read_metrics(run) if "loss" in row]
    before = 0.0
    for row in rows:
        row["step_seconds"], before = row["seconds"] - before, row["seconds"]
    return rows


def main() -> None:
    """Entry point of `python -m benchmarks.scaling`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    rows = []

    def measure(what: str, size: int, *overrides: str, ranks: int = 1, threads: int = 1) -> float:
        overrides = ("--data.corpus=folk-tunes", *overrides)
        found = run_steps(RECIPE, args.steps, *overrides, ranks=ranks, threads=threads)
        times = [row["step_seconds"] for row in found[3:]]  # the first three are a warm-up
        row = {"what": what, "size": size, "seconds": statistics.median(times), "all": times}
        rows.append(row)
        print(f"{what:8}{size:10,}  {row['seconds'] * 1e3:8.0f} ms per step")
        return row["seconds"]

    for dim in (64, 128, 256, 512):
        measure(
            "width",
            12 * 5 * dim**2,
            f"--model.dim={dim}",
            f"--model.hidden-dim={4 * dim}",
            f"--model.head-dim={dim // 4}",
        )
    for length in (128, 256, 512, 1024, 2048):
        batch = TOKENS // length
        measure(
            "length",
            length,
            f"--model.max-seq-len={length}",
            f"--train.batch-size={batch}",
            f"--train.micro-batch-size={batch}",
        )
    cores = os.cpu_count() or 1
    alone = measure("ranks", 1)
    shared = measure("ranks", cores, "--train.micro-batch-size=4", ranks=cores)
    threaded = measure("threads", cores, threads=cores)
    exponents = {}
    for what in ("width", "length"):
        points = np.log([[row["size"], row["seconds"]] for row in rows if row["what"] == what]).T
        exponents[what] = float(np.polyfit(*points, 1)[0])
        print(f"seconds per step grow with {what} to the power {exponents[what]:.2f}")
    print(f"speed-up of {cores} ranks {alone / shared:.2f}, of {cores} threads {alone / threaded:.2f}")
    print(f"written: {record('scaling', {'rows': rows, 'exponents': exponents})}")


if __name__ == "__main__":
    main()
