"""Short training runs in separate processes, and their metrics."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from train.metrics import read_metrics


def run_steps(recipe: str, steps: int, *overrides: str, ranks: int = 1, threads: int = 0) -> list:
    """Train `recipe` for `steps` steps; returns the rows of metrics.jsonl, each with `step_seconds`.

    Uses `torchrun` if there is more than one rank. Every rank has `threads` threads; 0 divides the
    cores evenly among ranks. Raises CalledProcessError if the run fails.
    """
    threads = threads or max(1, (os.cpu_count() or 1) // ranks)
    launch = ["-m", "train.pretrain"]
    if ranks > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        launch += ["-m", "train.pretrain"]
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        own = [f"--train.steps={steps}", "--train.eval-every=1000000", "--train.save-every=1000000"]
        only = ["--sample.max-new-tokens=1", "--sample.num-samples=1", f"--run-dir={run}"]
        subprocess.run(
            [sys.executable, *launch, recipe, *own, *only, *overrides],
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
