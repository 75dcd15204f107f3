"""Peak memory of preparing a large text file, which must not be loaded into memory as a whole.

    python -m benchmarks.prepare_memory [--megabytes 200]

Writes a text file of that size, prepares it in a separate process and reports its peak resident
memory (VmHWM, Linux only).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.record import record

# ru_maxrss of a child process starts at its parent's peak; VmHWM does not.
PREPARE = """
from data.prepare import main
main()
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print(line)
"""


def write_text(path: Path, megabytes: int) -> int:
    """Write lines of random words, Zipf-distributed, without long repeats; returns the bytes."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    stock = ["".join(draw.choice(letters, size)) for size in draw.integers(2, 10, 20_000)]
    weights = 1 / np.arange(1, len(stock) + 1)
    weights /= weights.sum()
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < megabytes * 10**6:
            words = [stock[i] for i in draw.choice(len(stock), 100_000, p=weights)]
            lines = (" ".join(words[i : i + 12]) for i in range(0, len(words), 12))
            written += file.write("\n".join(lines) + "\n")
    return written


def measure(megabytes: int) -> dict:
    """Seconds and peak bytes of `data.prepare` on a new file of that size."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "large.txt"
        size = write_text(text, megabytes)
        recipe = Path(folder) / "large.toml"
        recipe.write_text(f'[data]\ncorpus = "{text}"\ncache_dir = "{folder}/cache"\n')
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", PREPARE, recipe], check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - started
    kilobytes = int(done.stdout.split("VmHWM:")[1].split()[0])
    return {"text_bytes": size, "seconds": seconds, "peak_bytes": kilobytes * 1024}


def main() -> None:
    """Measure, record and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    result = measure(parser.parse_args().megabytes)
    path = record("prepare_memory", result)
    print(
        f"{result['text_bytes'] / 1e6:.0f} MB of text: peak {result['peak_bytes'] / 2**30:.2f} GiB "
        f"resident, {result['seconds']:.0f} s; {path}"
    )


if __name__ == "__main__":
    main()
