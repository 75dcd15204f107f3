"""Peak memory of a training step against sequence length and vocabulary size, ours and transformers.

    python -m benchmarks.memory

One Llama shape, batch 1, float32, forward and backward without an optimiser. Each point runs in a
separate process and is the peak of resident memory minus the resident memory before the step.
Writes benchmarks/results/DEVICE/memory.json.
"""

import argparse
import subprocess
import sys

import numpy as np
import psutil
import torch

from benchmarks.peers import transformers_llama
from benchmarks.record import record
from benchmarks.throughput import SHAPES
from model.build import build_model
from train.metrics import peak_memory

POINTS = [(length, 4096) for length in (256, 512, 1024, 2048, 4096, 8192)]
POINTS += [(1024, vocabulary) for vocabulary in (8192, 16384, 32768, 65536)]


def measure(library: str, length: int, vocabulary: int) -> int:
    """Peak bytes that a step on one window adds. Must run in a fresh process."""
    shape = SHAPES["small"].model_copy(update={"max_seq_len": length})
    own = build_model(shape, vocabulary).init_weights(0)
    x, y = torch.randint(0, vocabulary, (2, 1, length))
    if library == "ours":
        model, loss = own, lambda: own(x, targets=y) / length
    else:
        model = transformers_llama(shape, own.state_dict())
        del own
        loss = lambda: model(x, labels=y, shift_labels=y).loss  # noqa: E731
    small = torch.zeros(1, 8, dtype=torch.int64)
    model(small, targets=small) if library == "ours" else model(small, labels=small)  # loads libraries
    before = psutil.Process().memory_info().rss
    loss().backward()
    return peak_memory(x.device) - before


def main() -> None:
    """Entry point of `python -m benchmarks.memory`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(args.one[0], *map(int, args.one[1:])))
        return
    rows = []
    for length, vocabulary in POINTS:
        row = {"length": length, "vocabulary": vocabulary}
        for library in ("ours", "transformers"):
            command = [sys.executable, "-m", "benchmarks.memory", "--one", library]
            command += [str(length), str(vocabulary)]
            ended = subprocess.run(command, capture_output=True, text=True)
            # A process killed for lack of memory is a valid result: None.
            row[library] = int(ended.stdout) if ended.returncode == 0 else None
        rows.append(row)
        shown = [f"{w} {row[w] / 2**20:,.0f} MiB" if row[w] else f"{w} too much" for w in ("ours", "transformers")]
        print(f"T {length:5}  V {vocabulary:6}  {', '.join(shown)}")
    lengths = [row for row in rows if row["vocabulary"] == 4096 and row["ours"]]
    exponent = float(np.polyfit(*np.log([[r["length"], r["ours"]] for r in lengths[2:]]).T, 1)[0])
    print(f"memory grows with length to the power {exponent:.2f}")
    print(f"written: {record('memory', {'rows': rows, 'exponent_of_length': exponent})}")


if __name__ == "__main__":
    main()
