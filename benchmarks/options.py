"""What options of the recipe gain or cost: `portable`, windows, document masks. Three seeds, two corpora.

    python -m benchmarks.options [--minutes 60] [--jobs 2] [--ways portable window "document mask"]

Setup: size 1m, a quarter of the speedrun's steps on python-stdlib, and on folk-tunes; equal steps. The
score is bits per byte of the test split, as tokenizers differ. Differences are paired by seed, with
the confidence interval of a paired t-test, and p-values corrected by Holm over the table. Cells (see
benchmarks/grid.py) in the ledger, results/DEVICE/options.jsonl, are not run again. The step time is
measured separately, in turn, on all cores. Writes results/DEVICE/options.json.
"""

import argparse
import os
import statistics

from scipy.stats import ttest_rel

from benchmarks.grid import Cell, measure_step_seconds, read_ledger, run_cells
from benchmarks.record import record, results_folder
from cli.recipes import load
from compare.analysis.significance import holm
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
    "window": ["--model.window=64"],
    "document mask": ["--train.document-mask=true"],
}


def plan_cells(ways: list[str]) -> list[Cell]:
    """All cells of some ways, seed by seed."""
    rate = load(Recipe, RECIPE).train.learning_rate
    shared = {"size": "1m", "share": 0.25, "learning_rate": rate}
    return [
        shared | {"way": way, "corpus": corpus, "seed": seed, "overrides": WAYS[way]}
        for seed in SEEDS
        for corpus in CORPORA
        for way in ways
    ]


def compare_with_full(rows: list[Cell], way: str, corpus: str) -> dict:
    """By how much a way's bits per byte are above the full recipe's, as a share of them."""
    bits = {
        name: [
            row["test_bits_per_byte"]
            for row in sorted(rows, key=lambda row: row["seed"])
            if (row["way"], row["corpus"]) == (name, corpus)
        ]
        for name in ("full", way)
    }
    test = ttest_rel(bits[way], bits["full"])
    low, high = test.confidence_interval()
    whole = statistics.mean(bits["full"])
    return {
        "way": way,
        "corpus": corpus,
        "full": bits["full"],
        "bits_per_byte": bits[way],
        "price": statistics.mean(bits[way]) / whole - 1,
        "interval": [low / whole, high / whole],
        "p": float(test.pvalue),
    }


def main() -> None:
    """Entry point of `python -m benchmarks.options`."""
    parser = argparse.ArgumentParser(description="what options of the recipe gain or cost")
    parser.add_argument("--minutes", type=float, default=1e4, help="time limit; unfinished cells resume later")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells to run in parallel")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS)[1:], default=list(WAYS)[1:])
    args = parser.parse_args()
    cells, path = plan_cells(["full", *args.ways]), results_folder() / "options.jsonl"
    run_cells(path, lambda rows: cells, args.jobs, args.minutes)
    rows = read_ledger(path)
    if not all(any(cell.items() <= row.items() for row in rows) for cell in cells):
        return
    found = [compare_with_full(rows, way, corpus) for way in args.ways for corpus in CORPORA]
    seconds = measure_step_seconds({cell["way"]: cell for cell in cells[: len(CORPORA) * len(WAYS)]})
    for each, p in zip(found, holm([each["p"] for each in found]), strict=True):
        each["p"] = p
        ratios = [b / a for a, b in zip(seconds["full"], seconds[each["way"]], strict=True)]
        each["step_time"] = statistics.median(ratios)
        low, high = each["interval"]
        print(
            f"{each['way']:14} {each['corpus']:14} {statistics.mean(each['bits_per_byte']):.4f} bits/byte, "
            f"{each['price']:+.1%} ({low:+.1%} to {high:+.1%}), p {p:.2g}; a step takes {each['step_time']:.2f} times "
            f"the full recipe's ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"written: {record('options', {'rows': found})}")


if __name__ == "__main__":
    main()
