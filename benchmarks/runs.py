"""Short training runs as processes of their own, and what their metrics say."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from train.metrics import read_metrics


def steps_of(recipe: str, steps: int, *overrides: str, ranks: int = 1, threads: int = 0) -> list:
    """The rows of metrics.jsonl of `steps` steps, each with its own `step_seconds`.

    Trains `recipe` with the overrides under `torchrun` if there is more than one rank. Every rank
    has `threads` threads; 0 shares the cores out. Raises CalledProcessError if the run fails.
    """
    threads = threads or max(1, (os.cpu_count() or 1) // ranks)
    launch = ["-m", "train.pretrain"]
    if ranks > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        launch += ["-m", "train.pretrain"]
    with tempfile.TemporaryDirectory() as room:
        run = Path(room) / "run"
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
