"""How few tokens, FLOPs and seconds reach the final loss of a nanoGPT-style baseline.

    python -m benchmarks.speedrun [--minutes 60] [--jobs 2] [--sizes 1m 4m]

Methods: "baseline" is GPT-2's architecture (transformers) with AdamW and a cosine schedule; "recipe"
is configs/speedrun-SIZE.toml with a tenth of the baseline's steps and as many parameters in the blocks;
"without tables" is that recipe without value and bigram embeddings, which has as many parameters in
all, with a sixth of the steps. All use the same training loop and the same windows. The learning
rate search has the same number of tries for each method and uses the validation split of
python-stdlib: four rates at size 1m; at 4m the best of these, a half and a quarter of it. Nothing
was chosen on aws-api. The reported loss is on the test splits, with p-values corrected by Holm over
the table. Cells (see benchmarks/grid.py) in the ledger, results/DEVICE/speedrun.jsonl, are not run
again: delete the cells of a recipe that changed. Step times are measured separately, methods in
turn, on all cores, eager and compiled; the faster of the two counts. Writes
results/DEVICE/speedrun.json.
"""

import argparse
import os
import statistics
from functools import partial

from scipy.stats import ttest_ind

from benchmarks.grid import COMPILED, DATA_VERSION, STEPS, Cell, has_all, measure_step_seconds, read_ledger, run_cells
from benchmarks.record import record, results_folder
from compare.analysis.significance import holm

TUNING_CORPUS = "python-stdlib"
CORPORA = (TUNING_CORPUS, "aws-api")
SEEDS = (0, 1, 2)
SHARES = {"baseline": 1.0, "recipe": 1 / 10, "without tables": 1 / 6}
RATES = {  # learning rates tried at size 1m
    "baseline": (1e-3, 2e-3, 4e-3, 8e-3),
    "recipe": (3e-3, 4e-3, 6e-3, 9e-3),
    "without tables": (3e-3, 4e-3, 6e-3, 9e-3),
}
NO_TABLES = ["--model.value-embeddings=false", "--model.bigram-buckets=0"]
OVERRIDES = {"baseline": [], "recipe": [], "without tables": NO_TABLES}


def make_cell(method: str, size: str) -> Cell:
    """A cell of a method and size on TUNING_CORPUS, without a learning rate."""
    return {
        "way": method,
        "data": DATA_VERSION,
        "size": size,
        "corpus": TUNING_CORPUS,
        "seed": SEEDS[0],
        "share": SHARES[method],
        "overrides": OVERRIDES[method],
    }


def plan_cells(rows: list[Cell], sizes: list[str]) -> list[Cell]:
    """All cells to run: the learning rate search, then all corpora and seeds at the best rate.

    The second part follows once `rows` holds every cell of the search.
    """
    found: list[Cell] = []
    for method, rates in RATES.items():
        for size in STEPS:
            about = make_cell(method, size)
            tries = [about | {"learning_rate": rate} for rate in rates]
            wanted = list(tries)
            ended = [row for row in rows if any(cell.items() <= row.items() for cell in tries)]
            if len(ended) == len(tries):
                best = min(ended, key=lambda row: row["validation_loss"])["learning_rate"]
                about["learning_rate"] = best
                wanted += [about | {"corpus": c, "seed": seed} for c in CORPORA for seed in SEEDS]
            found += wanted if size in sizes else []
            if len(ended) < len(tries):
                break
            rates = (best, best / 2, best / 4)
    return sorted(found, key=lambda cell: list(STEPS).index(cell["size"]))


def choose_faster(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Seconds per step of every method, eager or compiled, whichever has the lower median."""
    pairs = {method: (seconds[method], seconds[method + COMPILED]) for method in SHARES}
    return {method: min(pair, key=statistics.median) for method, pair in pairs.items()}


def compare_to_baseline(rows: list[Cell], size: str, seconds: dict[str, list[float]]) -> list[dict]:
    """Compare every method to the baseline, at its best learning rate, on each corpus.

    The interval and p of the loss difference (nats per token) are Welch's t-test over seeds.
    """
    found = []
    for corpus in CORPORA:
        wanted = [c for c in plan_cells(rows, [size]) if c["corpus"] == corpus]
        ended = [r for r in rows if any(c.items() <= r.items() for c in wanted)]
        groups: dict[tuple, list[Cell]] = {}
        for row in ended:
            groups.setdefault((row["way"], row["learning_rate"]), []).append(row)
        full = {key: g for key, g in groups.items() if {r["seed"] for r in g} == set(SEEDS)}
        baseline = [g for (method, _), g in full.items() if method == "baseline"]
        if not baseline:
            continue
        base = [row["test_loss"] for row in baseline[0]]
        for (method, rate), group in full.items():
            share = SHARES[method]
            losses = [row["test_loss"] for row in group]
            test = ttest_ind(losses, base, equal_var=False)
            low, high = test.confidence_interval() if method != "baseline" else (0.0, 0.0)
            ratios = [b / a for a, b in zip(seconds["baseline"], seconds[method], strict=True)]
            found.append(
                {
                    "size": size,
                    "corpus": corpus,
                    "way": method,
                    "share": share,
                    "parameters": group[0]["parameters"],
                    "learning_rate": rate,
                    "test_losses": losses,
                    "over_baseline": statistics.mean(losses) - statistics.mean(base),
                    "interval": [low, high],
                    "p": float(test.pvalue) if method != "baseline" else 1.0,
                    "tokens": share,
                    "flops": group[0]["flops"] / baseline[0][0]["flops"],
                    "seconds": share * statistics.median(ratios),
                    "seconds_range": [share * min(ratios), share * max(ratios)],
                }
            )
    return found


def show(row: dict) -> None:
    """Print one line of the table."""
    print(
        f"{row['size']} {row['corpus']:14}{row['way']:15} {row['parameters'] / 1e6:5.2f}M parameters, "
        f"{row['share']:5.3f} of the tokens, "
        f"{row['flops']:.3f} of the FLOPs, {row['seconds']:.3f} of the seconds "
        f"({row['seconds_range'][0]:.3f} to {row['seconds_range'][1]:.3f}): test loss "
        f"{statistics.mean(row['test_losses']):.4f}, {row['over_baseline']:+.4f} "
        f"({row['interval'][0]:+.4f} to {row['interval'][1]:+.4f}) nats, p {row['p']:.1g}"
    )


def main() -> None:
    """Entry point of `python -m benchmarks.speedrun`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1e4, help="time limit; unfinished cells resume later")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells to run in parallel")
    parser.add_argument("--sizes", nargs="+", default=list(STEPS), choices=STEPS)
    args = parser.parse_args()
    path = results_folder() / "speedrun.jsonl"
    run_cells(path, partial(plan_cells, sizes=args.sizes), args.jobs, args.minutes)
    rows, results, timings = read_ledger(path), [], {}
    if not has_all(rows, plan_cells(rows, args.sizes)):
        return
    for size in args.sizes:
        cells = {method: make_cell(method, size) for method in SHARES}
        timings[size] = measure_step_seconds(cells, compiled=True)
        results += compare_to_baseline(rows, size, choose_faster(timings[size]))
    compared = [row for row in results if row["way"] != "baseline"]
    for row, p in zip(compared, holm([row["p"] for row in compared]), strict=True):
        row["p"] = p
    for row in results:
        show(row)
    print(f"written: {record('speedrun', {'results': results, 'step_seconds': timings})}")


if __name__ == "__main__":
    main()
