"""What each part of the speedrun recipe is worth: one part taken out at a time, three seeds or six.

    python -m benchmarks.ablation [--minutes 60] [--jobs 2]

Small size, python-stdlib, an eighth of the baseline's steps, the recipe's learning rate; the loss
is that on the validation split, on which the parts were chosen, its difference to the whole recipe
taken seed by seed (the same data in the same order), with the interval of a paired t-test. A part
whose interval over three seeds holds zero gets three more. Cells (see benchmarks/cells.py) that the
ledger, results/DEVICE/ablation.jsonl, holds are not run again. What a part costs or saves in a step
is measured apart, all in turn, on all cores. Writes results/DEVICE/ablation.json.
"""

import argparse
import os
import statistics

from scipy.stats import ttest_rel

from benchmarks.grid import Cell, done, run, step_seconds
from benchmarks.record import folder, record
from cli.recipes import load
from configs.schema import Recipe

RECIPE = "configs/speedrun-1m.toml"
SEEDS = (0, 1, 2)
MORE_SEEDS = (3, 4, 5)  # where the first do not tell
# The parts were tried around a recipe that had them all; what showed no gain has left it since.
LEFT = ["--model.tie-embeddings=false"]
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
WITHOUT = {part: LEFT + overrides for part, overrides in PARTS.items()}


def plan(rows: list[Cell]) -> list[Cell]:
    """All cells as far as they are known: more seeds once it is known who needs them."""
    rate = load(Recipe, RECIPE).train.learning_rate
    about = {"size": "1m", "corpus": "python-stdlib", "share": 0.125, "learning_rate": rate}

    def cells(seeds: tuple[int, ...], parts: list[str]) -> list[Cell]:
        return [
            about | {"way": f"without {part}", "seed": seed, "overrides": WITHOUT[part]}
            for seed in seeds
            for part in parts
        ]

    first = [row for row in rows if row["seed"] in SEEDS]
    unclear = [p["part"] for p in gains(first) if p["interval"][0] <= 0]
    return cells(SEEDS, list(WITHOUT)) + cells(MORE_SEEDS, ["nothing", *unclear] * bool(unclear))


def gains(rows: list[Cell]) -> list[dict]:
    """For every part that has at least its first seeds: what taking it out adds to the loss."""
    losses: dict[str, dict[int, float]] = {part: {} for part in WITHOUT}
    for row in rows:
        losses[row["way"].removeprefix("without ")][row["seed"]] = row["validation_loss"]
    whole, found = losses.pop("nothing"), []
    for part, without in losses.items():
        seeds = sorted(without.keys() & whole.keys())
        if not {*SEEDS} <= {*seeds}:
            continue
        pairs = [without[seed] for seed in seeds], [whole[seed] for seed in seeds]
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
    return sorted(found, key=lambda row: -row["gain"])


def in_time(part: str, seconds: dict[str, list[float]]) -> dict:
    """How many times as long a step takes without a part: the median and range of the rounds."""
    ratios = [b / a for a, b in zip(seconds["nothing"], seconds[part], strict=True)]
    return {"step_without": statistics.median(ratios), "step_range": [min(ratios), max(ratios)]}


def main() -> None:
    """Entry point of `python -m benchmarks.ablation`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1e4, help="end all cells after these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time")
    args = parser.parse_args()
    path = folder() / "ablation.jsonl"
    run(path, plan, args.jobs, args.minutes)
    cells = {c["way"].removeprefix("without "): c for c in plan([])}
    seconds = step_seconds(cells)
    parts = [row | in_time(row["part"], seconds) for row in gains(done(path))]
    print("without this part               the loss grows by             a step takes, times")
    for row in parts:
        low, high = row["interval"]
        print(
            f"{row['part']:30} {row['gain']:+.4f} ({low:+.4f} to {high:+.4f})  p {row['p']:.1g}, "
            f"{len(row['losses'])} seeds  "
            f"{row['step_without']:.2f} ({row['step_range'][0]:.2f} to {row['step_range'][1]:.2f})"
        )
    print(f"written: {record('ablation', {'parts': parts})}")


if __name__ == "__main__":
    main()
