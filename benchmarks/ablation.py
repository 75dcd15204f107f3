"""What each part of the speedrun recipe is worth: one part taken out at a time, three seeds.

    python -m benchmarks.ablation [--minutes 60] [--jobs 2]

Small size, python-stdlib, an eighth of the baseline's steps, the recipe's learning rate; the loss
is that on the validation split, on which the parts were chosen, its difference to the whole recipe
taken seed by seed (the same data in the same order), with the interval of a paired t-test. Cells
(see benchmarks/cells.py) that the ledger, results/DEVICE/ablation.jsonl, holds are not run again.
What a part costs or saves in a step is measured apart, all in turn, on all cores. Writes
results/DEVICE/ablation.json.
"""

import argparse
import os
import statistics

from scipy.stats import ttest_rel

from benchmarks.cells import Cell, done, run, step_seconds
from benchmarks.record import folder, record
from configs.cli import load
from configs.schema import Recipe

RECIPE = "configs/speedrun-1m.toml"
SEEDS = (0, 1, 2)
WITHOUT = {
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


def plan() -> list[Cell]:
    """All cells, seed by seed."""
    rate = load(Recipe, RECIPE).train.learning_rate
    about = {"size": "1m", "corpus": "python-stdlib", "share": 0.125, "learning_rate": rate}
    return [
        about | {"way": f"without {part}", "seed": seed, "overrides": overrides}
        for seed in SEEDS
        for part, overrides in WITHOUT.items()
    ]


def worth(rows: list[Cell], seconds: dict[str, list[float]]) -> list[dict]:
    """For every part that has all its seeds: what taking it out adds to the loss, and to a step."""
    losses: dict[str, list[float]] = {part: [] for part in WITHOUT}
    for row in sorted(rows, key=lambda row: row["seed"]):
        losses[row["way"].removeprefix("without ")].append(row["validation_loss"])
    whole, found = losses.pop("nothing"), []
    for part, without in losses.items():
        if min(len(without), len(whole)) < len(SEEDS):
            continue
        test = ttest_rel(without, whole)
        low, high = test.confidence_interval()
        ratios = [b / a for a, b in zip(seconds["nothing"], seconds[part], strict=True)]
        found.append(
            {
                "part": part,
                "losses": without,
                "gain": statistics.mean(without) - statistics.mean(whole),
                "interval": [low, high],
                "p": float(test.pvalue),
                "step_without": statistics.median(ratios),
                "step_range": [min(ratios), max(ratios)],
            }
        )
    return sorted(found, key=lambda row: -row["gain"])


def main() -> None:
    """Entry point of `python -m benchmarks.ablation`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1e4, help="end all cells after these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time")
    args = parser.parse_args()
    path = folder() / "ablation.jsonl"
    run(path, lambda _: plan(), args.jobs, args.minutes)
    parts = worth(done(path), step_seconds({c["way"].removeprefix("without "): c for c in plan()}))
    print("without this part               the loss grows by             a step takes, times")
    for row in parts:
        low, high = row["interval"]
        print(
            f"{row['part']:30} {row['gain']:+.4f} ({low:+.4f} to {high:+.4f})  p {row['p']:.1g}  "
            f"{row['step_without']:.2f} ({row['step_range'][0]:.2f} to {row['step_range'][1]:.2f})"
        )
    print(f"written: {record('ablation', {'parts': parts})}")


if __name__ == "__main__":
    main()
