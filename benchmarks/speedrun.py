"""How few tokens, FLOPs and seconds reach the loss that a nanoGPT-style baseline ends with.

    python -m benchmarks.speedrun [--minutes 60] [--jobs 2] [--sizes 1m 4m] [--ways recipe …]

The baseline is GPT-2's architecture (transformers) with AdamW and a cosine; "recipe" is
configs/speedrun-SIZE.toml on a share of the baseline's steps; "adamw" is that recipe with AdamW for
every weight. All run in the same loop on the same windows, with as many parameters in the blocks.
Learning rates are chosen for each way from equally many tries, by the loss on the validation split
of python-stdlib: four at the small size, and at the next one the best of these, a half and a
quarter of it; what is reported is the loss on the test splits. Cells (see benchmarks/cells.py) that
the ledger, results/DEVICE/speedrun.jsonl, holds are not run again; delete those of a recipe that
changed. The seconds of a step are measured apart from them, the ways in turn, on all cores, as they
stand and with torch.compile: each way counts with what is faster. Writes
results/DEVICE/speedrun.json, .png.
"""

import argparse
import os
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import ttest_ind

from benchmarks.grid import COMPILED, STEPS, Cell, done, run, step_seconds
from benchmarks.record import folder, record

TUNED_ON = "python-stdlib"
CORPORA = (TUNED_ON, "aws-api")
SEEDS = (0, 1, 2)
OVERFITTED = "folk-tunes"  # too small a corpus for a comparison: it is shown, with one seed
SHARES = {"baseline": 1.0, "recipe": 0.125, "adamw": 0.125}
RATES = {  # tried at the first size
    "baseline": (1e-3, 2e-3, 4e-3, 8e-3),
    "recipe": (3e-3, 4e-3, 6e-3, 9e-3),
    "adamw": (1e-3, 2e-3, 4e-3, 8e-3),
}
OVERRIDES = {"baseline": [], "recipe": [], "adamw": ["--train.optimizer=adamw"]}


def cell_of(way: str, size: str) -> Cell:
    """A cell of a way and size without its learning rate, on what that is tuned on."""
    return {
        "way": way,
        "size": size,
        "corpus": TUNED_ON,
        "seed": SEEDS[0],
        "share": SHARES[way],
        "overrides": OVERRIDES[way],
    }


def plan(rows: list[Cell], sizes: list[str]) -> list[Cell]:
    """All cells as far as they are known: the tries, and the best one's rate once they ended."""
    found: list[Cell] = []
    for way, rates in RATES.items():
        for size in STEPS:
            about = cell_of(way, size)
            tries = [about | {"learning_rate": rate} for rate in rates]
            wanted = list(tries)
            ended = [row for row in rows if any(cell.items() <= row.items() for cell in tries)]
            if len(ended) == len(tries):
                best = min(ended, key=lambda row: row["validation_loss"])["learning_rate"]
                about["learning_rate"] = best
                wanted += [about | {"corpus": c, "seed": seed} for c in CORPORA for seed in SEEDS]
                if size == "1m":
                    wanted.append(about | {"corpus": OVERFITTED})
            found += wanted if size in sizes else []
            if len(ended) < len(tries):
                break
            rates = (best, best / 2, best / 4)
    return sorted(found, key=lambda cell: list(STEPS).index(cell["size"]))


def faster(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Of every way the seconds as it stands or compiled, whichever take less."""
    pairs = {way: (seconds[way], seconds[way + COMPILED]) for way in SHARES}
    return {way: min(pair, key=statistics.median) for way, pair in pairs.items()}


def compared(rows: list[Cell], size: str, seconds: dict[str, list[float]]) -> list[dict]:
    """Every way beside the baseline, at its best learning rate, on each corpus."""
    found = []
    for corpus in CORPORA:
        wanted = [c for c in plan(rows, [size]) if c["corpus"] == corpus]
        ended = [r for r in rows if any(c.items() <= r.items() for c in wanted)]
        groups: dict[tuple, list[Cell]] = {}
        for row in ended:
            groups.setdefault((row["way"], row["learning_rate"]), []).append(row)
        full = {key: g for key, g in groups.items() if {r["seed"] for r in g} == set(SEEDS)}
        baseline = [g for (way, _), g in full.items() if way == "baseline"]
        if not baseline:
            continue
        base = [row["test_loss"] for row in baseline[0]]
        for (way, rate), group in full.items():
            share = SHARES[way]
            losses = [row["test_loss"] for row in group]
            test = ttest_ind(losses, base, equal_var=False)
            low, high = test.confidence_interval() if way != "baseline" else (0.0, 0.0)
            ratios = [b / a for a, b in zip(seconds["baseline"], seconds[way], strict=True)]
            found.append(
                {
                    "size": size,
                    "corpus": corpus,
                    "way": way,
                    "share": share,
                    "learning_rate": rate,
                    "test_losses": losses,
                    "over_baseline": statistics.mean(losses) - statistics.mean(base),
                    "interval": [low, high],
                    "p": float(test.pvalue) if way != "baseline" else 1.0,
                    "tokens": share,
                    "flops": group[0]["flops"] / baseline[0][0]["flops"],
                    "seconds": share * statistics.median(ratios),
                    "seconds_range": [share * min(ratios), share * max(ratios)],
                }
            )
    return found


def show(row: dict) -> None:
    """One line of the table."""
    print(
        f"{row['size']} {row['corpus']:14}{row['way']:9} {row['share']:5.3f} of the tokens, "
        f"{row['flops']:.3f} of the FLOPs, {row['seconds']:.3f} of the seconds "
        f"({row['seconds_range'][0]:.3f} to {row['seconds_range'][1]:.3f}): test loss "
        f"{statistics.mean(row['test_losses']):.4f}, {row['over_baseline']:+.4f} "
        f"({row['interval'][0]:+.4f} to {row['interval'][1]:+.4f}) nats, p {row['p']:.1g}"
    )


def draw(rows: list[Cell], path: Path) -> None:
    """Validation loss against steps, a panel per size and corpus, a line per seed."""
    sizes = [size for size in STEPS if any(row["size"] == size for row in rows)]
    figure = Figure(figsize=(5.5 * len(CORPORA), 4 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), len(CORPORA), squeeze=False)
    colours = {"baseline": "tab:gray", "recipe": "tab:blue", "adamw": "tab:orange"}
    for line, size in zip(panels, sizes, strict=True):
        best = plan(rows, [size])
        for panel, corpus in zip(line, CORPORA, strict=True):
            for row in rows:
                same = [c for c in best if c.items() <= row.items() and c["corpus"] == corpus]
                if row["corpus"] == corpus and same:
                    steps, losses = zip(*row["curve"][1:], strict=True)
                    label = f"{row['way']}, {row['share']:g} of the steps"
                    panel.plot(steps, losses, color=colours[row["way"]], lw=1, label=label)
            panel.set(title=f"{size}, {corpus}", xlabel="step", ylabel="validation loss (nats)")
            panel.set_xscale("log")
            handles, labels = panel.get_legend_handles_labels()
            once = dict(zip(labels, handles, strict=True))
            panel.legend(once.values(), once.keys(), fontsize=8)
            panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Entry point of `python -m benchmarks.speedrun`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1e4, help="end all cells after these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time")
    parser.add_argument("--sizes", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--ways", nargs="+", default=list(SHARES), choices=SHARES, help="train only cells of these")
    args = parser.parse_args()
    path = folder() / "speedrun.jsonl"

    def wanted(rows: list[Cell]) -> list[Cell]:
        return [cell for cell in plan(rows, args.sizes) if cell["way"] in args.ways]

    run(path, wanted, args.jobs, args.minutes)
    rows, results, timings = done(path), [], {}
    for size in args.sizes:
        cells = {way: cell_of(way, size) for way in SHARES}
        timings[size] = step_seconds(cells, compiled=True)
        results += compared(rows, size, faster(timings[size]))
    for row in results:
        show(row)
    draw(rows, path.with_suffix(".png"))
    print(f"written: {record('speedrun', {'results': results, 'step_seconds': timings})}")


if __name__ == "__main__":
    main()
