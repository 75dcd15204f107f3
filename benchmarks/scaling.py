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

import numpy as np

from benchmarks.record import record
from benchmarks.runs import run_steps

RECIPE = "configs/speedrun-4m.toml"
TOKENS = 2048


def time_steps(steps: int, *overrides: str, ranks: int = 1, threads: int = 1) -> list[float]:
    """Seconds of every step except the first three (warm-up)."""
    rows = run_steps(RECIPE, steps, "--data.corpus=folk-tunes", *overrides, ranks=ranks, threads=threads)
    return [row["step_seconds"] for row in rows[3:]]


def main() -> None:
    """Entry point of `python -m benchmarks.scaling`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    rows = []

    def measure(what: str, size: int, *overrides: str, ranks: int = 1, threads: int = 1) -> float:
        times = time_steps(args.steps, *overrides, ranks=ranks, threads=threads)
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
