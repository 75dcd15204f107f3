"""Ablation of the speedrun recipe: remove one part at a time, with three seeds.

    python -m benchmarks.ablation [--minutes 60] [--jobs 2]

Setup: size 1m, python-stdlib, an eighth of the baseline's steps, the recipe's learning rate. The
score is the loss on the validation split, which was also used to choose the parts. Its difference to
the full recipe is paired by seed (same data, same data order), with the confidence interval of a
paired t-test and p-values corrected by Holm over the table. Cells (see benchmarks/grid.py) in the
ledger, results/DEVICE/ablation.jsonl, are not run again. The step time without each part is measured
separately, in turn, on all cores. Writes results/DEVICE/ablation.json.
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
SEEDS = (0, 1, 2)
# The ablated recipe has all parts; this restores a part without gain, since removed from the recipe.
REMOVED = ["--model.tie-embeddings=false"]
PARTS = {
    "nothing": [],
    "Muon": ["--train.optimizer=adamw"],
    "key shift": ["--model.key-shift=false"],
    "QK-norm": ["--model.qk-norm=false"],
    "squared ReLU (SwiGLU)": ["--model.activation=swiglu", "--model.hidden-dim=344"],
    "zero-initialised projections": ["--model.zero-init=false"],
    "untied output": ["--model.tie-embeddings=true"],
    "embedding norm": ["--model.embedding-norm=false"],
    "value embeddings": ["--model.value-embeddings=false"],
    "pair embeddings": ["--model.bigram-buckets=0"],
    "embeddings' rate": ["--train.embedding-lr=1"],
    "WSD (cosine)": ["--train.schedule=cosine"],
}
WITHOUT = {part: REMOVED + overrides for part, overrides in PARTS.items()}


def plan_cells(rows: list[Cell]) -> list[Cell]:
    """All cells to run: every part with every seed, whatever `rows` have ended."""
    rate = load(Recipe, RECIPE).train.learning_rate
    shared = {"data": DATA_VERSION, "size": "1m", "corpus": "python-stdlib", "share": 0.125, "learning_rate": rate}
    return [
        shared | {"way": f"without {part}", "seed": seed, "overrides": overrides}
        for seed in SEEDS
        for part, overrides in WITHOUT.items()
    ]


def compute_gains(rows: list[Cell]) -> list[dict]:
    """The loss (nats per token) added by removing each part, for parts with all of SEEDS; sorted."""
    losses: dict[str, dict[int, float]] = {part: {} for part in WITHOUT}
    for row in rows:
        losses[row["way"].removeprefix("without ")][row["seed"]] = row["validation_loss"]
    whole, found = losses.pop("nothing"), []
    for part, without in losses.items():
        if not {*SEEDS} <= without.keys() & whole.keys():
            continue
        pairs = [without[seed] for seed in SEEDS], [whole[seed] for seed in SEEDS]
        test = ttest_rel(*pairs)
        low, high = test.confidence_interval()
        found.append(
            {
                "part": part,
                "losses": pairs[0],
                "gain": statistics.mean(pairs[0]) - statistics.mean(pairs[1]),
                "interval": [low, high],
                "p": float(test.pvalue),
            }
        )
    for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
        row["p"] = p
    return sorted(found, key=lambda row: -row["gain"])


def compare_step_time(part: str, seconds: dict[str, list[float]]) -> dict:
    """Step time without a part over that of the full recipe: median and range over the rounds."""
    ratios = [b / a for a, b in zip(seconds["nothing"], seconds[part], strict=True)]
    return {"step_without": statistics.median(ratios), "step_range": [min(ratios), max(ratios)]}


def main() -> None:
    """Entry point of `python -m benchmarks.ablation`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1e4, help="time limit; unfinished cells resume later")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells to run in parallel")
    args = parser.parse_args()
    path = results_folder() / "ablation.jsonl"
    run_cells(path, plan_cells, args.jobs, args.minutes)
    rows = read_ledger(path)
    if not has_all(rows, plan_cells(rows)):
        return
    cells = {c["way"].removeprefix("without "): c for c in plan_cells([])}
    seconds = measure_step_seconds(cells)
    parts = [row | compare_step_time(row["part"], seconds) for row in compute_gains(rows)]
    print("without this part               added loss (nats)             relative step time")
    for row in parts:
        low, high = row["interval"]
        print(
            f"{row['part']:30} {row['gain']:+.4f} ({low:+.4f} to {high:+.4f})  p {row['p']:.1g}  "
            f"{row['step_without']:.2f} ({row['step_range'][0]:.2f} to {row['step_range'][1]:.2f})"
        )
    print(f"written: {record('ablation', {'parts': parts})}")


if __name__ == "__main__":
    main()
