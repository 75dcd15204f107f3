"""How the time of a step grows with ranks, model size and sequence length.

    python -m benchmarks.scaling [--steps 12]

Real runs of `train.pretrain` on folk-tunes from configs/speedrun-4m.toml, one setting changed at a
time, 2,048 tokens per step. Widths and lengths have one thread; ranks share the cores out, and
beside the speed-up of two ranks on one thread each stands that of two threads on one rank. The
exponent is the slope of a straight line through the logarithms of parameters (or length) and of the
median step. Writes benchmarks/results/DEVICE/scaling.json.
"""

import argparse
import os
import statistics

import numpy as np

from benchmarks.record import record
from benchmarks.runs import steps_of

RECIPE = "configs/speedrun-4m.toml"
TOKENS = 2048


def seconds(steps: int, *overrides: str, ranks: int = 1, threads: int = 1) -> list[float]:
    """Of every step but the first three."""
    rows = steps_of(RECIPE, steps, "--data.corpus=folk-tunes", *overrides, ranks=ranks, threads=threads)
    return [row["step_seconds"] for row in rows[3:]]


def main() -> None:
    """Entry point of `python -m benchmarks.scaling`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    rows = []

    def measure(what: str, size: int, *overrides: str, ranks: int = 1, threads: int = 1) -> float:
        times = seconds(args.steps, *overrides, ranks=ranks, threads=threads)
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
    print(f"{cores} ranks {alone / shared:.2f}, {cores} threads {alone / threaded:.2f} times as fast")
    print(f"written: {record('scaling', {'rows': rows, 'exponents': exponents})}")


if __name__ == "__main__":
    main()
