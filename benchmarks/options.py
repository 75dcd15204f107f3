"""What options of the recipe gain or cost: `portable`, windows, document masks. Three seeds, two corpora.

    python -m benchmarks.options [--minutes 60] [--jobs 2]

Setup: size 1m, a quarter of the speedrun's steps on python-stdlib, and on folk-tunes. Windows and document
masks train for equal seconds: first the times of a step are measured, in turn, on all cores, and the
number of steps is divided by their ratio; their loss on validation decides. `portable` takes equal steps; its
price is in bits per byte of the test split, as its tokenizer differs.
Differences are paired by seed, with the confidence interval of a paired t-test, and p-values corrected by
Holm over the table. Cells (see benchmarks/grid.py) in the ledger, results/DEVICE/options.jsonl, are not run
again. Writes results/DEVICE/options.json.
"""

import argparse
import os
import statistics

from scipy.stats import ttest_rel

from benchmarks.grid import DATA_VERSION, Cell, has_all, measure_step_seconds, read_ledger, run_cells
from benchmarks.record import record, results_folder
from cli.recipes import load
from compare.analysis.significance import holm
from configs.schema import Recipe

RECIPE = "configs/speedrun-1m.toml"
CORPORA = ("python-stdlib", "folk-tunes")
SEEDS = (0, 1, 2)
SHARE = 0.25  # of the speedrun's steps
EQUAL_STEPS = ("full", "portable")
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


def make_cell(way: str, share: float = SHARE) -> Cell:
    """A cell of a way, without corpus and seed."""
    rate = load(Recipe, RECIPE).train.learning_rate
    about = {"way": way, "data": DATA_VERSION, "size": "1m", "share": share}
    return about | {"learning_rate": rate, "overrides": WAYS[way]}


def shares_of(rows: list[Cell], seconds: dict[str, list[float]]) -> dict[str, float]:
    """The share of the steps for every way: what its rows have, else what takes the full recipe's seconds.

    `seconds`: of a step, one value per round.
    """
    known = {row["way"]: row["share"] for row in rows}
    found = {}
    for way, each in seconds.items():
        ratio = 1.0 if way in EQUAL_STEPS else compare_step_times(seconds["full"], each)[0]
        found[way] = known.get(way, round(SHARE / ratio, 4))
    return found


def compare_step_times(full: list[float], other: list[float]) -> tuple[float, float, float]:
    """The median, least and largest ratio of the other's seconds of a step to the full recipe's."""
    ratios = [b / a for a, b in zip(full, other, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def plan_cells(shares: dict[str, float]) -> list[Cell]:
    """All cells of the ways in `shares`, seed by seed."""
    cells = [make_cell(way, share) for way, share in shares.items()]
    return [cell | {"corpus": corpus, "seed": seed} for seed in SEEDS for corpus in CORPORA for cell in cells]


def compare_with_full(rows: list[Cell], way: str, corpus: str) -> dict:
    """By how much a way's loss is above the full recipe's, as a share of it."""
    key = "test_bits_per_byte" if way == "portable" else "validation_loss"
    losses = {
        name: [
            row[key]
            for row in sorted(rows, key=lambda row: row["seed"])
            if (row["way"], row["corpus"]) == (name, corpus)
        ]
        for name in ("full", way)
    }
    test = ttest_rel(losses[way], losses["full"])
    low, high = test.confidence_interval()
    whole = statistics.mean(losses["full"])
    return {
        "way": way,
        "corpus": corpus,
        "score": key,
        "full": losses["full"],
        "found": losses[way],
        "price": statistics.mean(losses[way]) / whole - 1,
        "interval": [low / whole, high / whole],
        "p": float(test.pvalue),
    }


def main() -> None:
    """Entry point of `python -m benchmarks.options`."""
    parser = argparse.ArgumentParser(description="what options of the recipe gain or cost")
    parser.add_argument("--minutes", type=float, default=1e4, help="time limit; unfinished cells resume later")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells to run in parallel")
    args = parser.parse_args()
    path = results_folder() / "options.jsonl"
    seconds = measure_step_seconds({way: make_cell(way) | {"corpus": CORPORA[0], "seed": 0} for way in WAYS})
    shares = shares_of(read_ledger(path), seconds)
    cells = plan_cells(shares)
    run_cells(path, lambda rows: cells, args.jobs, args.minutes)
    rows = read_ledger(path)
    if not has_all(rows, cells):
        return
    found = [compare_with_full(rows, way, corpus) for way in list(WAYS)[1:] for corpus in CORPORA]
    for each, p in zip(found, holm([each["p"] for each in found]), strict=True):
        each["p"], each["steps"] = p, shares[each["way"]] / shares["full"]
        each["step_time"], *spread = compare_step_times(seconds["full"], seconds[each["way"]])
        low, high = each["interval"]
        print(
            f"{each['way']:14} {each['corpus']:14} {each['score']} {statistics.mean(each['found']):.4f}, "
            f"{each['price']:+.1%} ({low:+.1%} to {high:+.1%}), p {p:.2g}, with {each['steps']:.2f} of the steps; a "
            f"step takes {each['step_time']:.2f} times the full recipe's ({spread[0]:.2f} to {spread[1]:.2f})"
        )
    print(f"written: {record('options', {'rows': found})}")


if __name__ == "__main__":
    main()
