"""The price of `portable`: the full recipe against what every other library can load, three seeds, two corpora.

    python -m benchmarks.portable [--minutes 60] [--jobs 2]

Setup: size 1m, a quarter of the speedrun's steps on python-stdlib, and on folk-tunes, the same for both. The
score is bits per byte of the test split, as the tokenizers differ. Differences are paired by seed, with
the confidence interval of a paired t-test. Cells (see benchmarks/grid.py) in the ledger,
results/DEVICE/portable.jsonl, are not run again. The step time is measured separately, in turn, on all
cores. Writes results/DEVICE/portable.json.
"""

import argparse
import os
import statistics

from scipy.stats import ttest_rel

from benchmarks.grid import Cell, measure_step_seconds, read_ledger, run_cells
from benchmarks.record import record, results_folder
from cli.recipes import load
from configs.schema import Recipe

RECIPE = "configs/speedrun-1m.toml"
CORPORA = ("python-stdlib", "folk-tunes")
SEEDS = (0, 1, 2)
WAYS = {
    "full": [],
    "portable": [
        "--portable=true",
        "--tokenizer.newlines=attach",
        "--model.activation=swiglu",
        "--model.hidden-dim=344",
        "--model.key-shift=false",
        "--model.value-embeddings=false",
        "--model.bigram-buckets=0",
        "--model.embedding-norm=false",
        "--model.tie-embeddings=false",
    ],
}


def plan_cells(rows: list[Cell]) -> list[Cell]:
    """All cells, seed by seed; `rows` change nothing."""
    rate = load(Recipe, RECIPE).train.learning_rate
    shared = {"size": "1m", "share": 0.25, "learning_rate": rate}
    return [
        shared | {"way": way, "corpus": corpus, "seed": seed, "overrides": overrides}
        for seed in SEEDS
        for corpus in CORPORA
        for way, overrides in WAYS.items()
    ]


def compare_ways(rows: list[Cell], corpus: str) -> dict:
    """Bits per byte of both, and by how much `portable` is above, as a share of the full recipe's."""
    bits = {
        way: [
            row["test_bits_per_byte"]
            for row in sorted(rows, key=lambda row: row["seed"])
            if (row["way"], row["corpus"]) == (way, corpus)
        ]
        for way in WAYS
    }
    test = ttest_rel(bits["portable"], bits["full"])
    low, high = test.confidence_interval()
    whole = statistics.mean(bits["full"])
    price = statistics.mean(bits["portable"]) - whole
    return {"corpus": corpus, **bits, "price": price / whole, "interval": [low / whole, high / whole]}


def main() -> None:
    """Entry point of `python -m benchmarks.portable`."""
    parser = argparse.ArgumentParser(description="the price of portable = true")
    parser.add_argument("--minutes", type=float, default=1e4, help="time limit; unfinished cells resume later")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells to run in parallel")
    args = parser.parse_args()
    path = results_folder() / "portable.jsonl"
    run_cells(path, plan_cells, args.jobs, args.minutes)
    rows = read_ledger(path)
    if len(rows) < len(plan_cells(rows)):
        return
    found = [compare_ways(rows, corpus) for corpus in CORPORA]
    seconds = measure_step_seconds({cell["way"]: cell for cell in plan_cells([])})
    ratios = [b / a for a, b in zip(seconds["full"], seconds["portable"], strict=True)]
    for each in found:
        low, high = each["interval"]
        full, portable = (statistics.mean(each[way]) for way in WAYS)
        bits = f"{full:.4f} and {portable:.4f} bits/byte"
        print(f"{each['corpus']}: {bits}, {each['price']:+.1%} ({low:+.1%} to {high:+.1%})")
    print(f"step time {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of the full recipe's")
    print(f"written: {record('portable', {'corpora': found, 'step_time': ratios})}")


if __name__ == "__main__":
    main()
