"""Plot all recorded results of this device in one figure.

    python -m benchmarks.picture

Reads results/DEVICE/*.json and skips missing files. Writes results/DEVICE/bench.png.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.record import results_folder


def speedrun(panel: Axes, result: dict) -> None:
    """Final loss minus that of the baseline, with its interval and the share of its seconds."""
    rows = [row for row in result["results"] if row["way"] != "baseline"]
    names = [f"{r['size']} {r['corpus']} {r['way']} {r['share']:g}" for r in rows]
    _intervals(panel, names, [(r["over_baseline"], *r["interval"]) for r in rows])
    for place, row in enumerate(rows):
        panel.text(row["interval"][1], place, f"  {row['seconds']:.2f} of its time", va="center", fontsize=7)
    panel.set(title="speedrun: test loss minus the baseline's", xlabel="nats per token")


def throughput(panel: Axes, result: dict) -> None:
    """Training step time of the other libraries relative to ours."""
    rows = [row for row in result["rows"] if row["way"] != "ours"]
    names = [f"{r['shape']} {r['precision']} x{r['threads']} {r['way']}" for r in rows]
    _bars(panel, names, [[r["time_over_ours"], *r["ratios"]] for r in rows])
    panel.set(title="training: time relative to ours")


def generation(panel: Axes, result: dict) -> None:
    """Decode speed relative to llama.cpp, or to transformers where that is not installed."""
    rows = result["rows"][::-1]
    names = [f"batch {r['batch']} prompt {r['prompt']} {r['variant']}" for r in rows]
    ratios = [r["decode_speed_ratios"] for r in rows]
    _bars(panel, names, [[statistics.median(own), *own] for own in ratios])
    base = "llama.cpp" if any(row["variant"] == "llama.cpp" for row in rows) else "transformers in float32"
    panel.set(title=f"decode: speed relative to {base}")


def ablation(panel: Axes, result: dict) -> None:
    """The loss added by removing each part of the recipe."""
    parts = result["parts"][::-1]
    _intervals(panel, [row["part"] for row in parts], [(row["gain"], *row["interval"]) for row in parts])
    panel.set(title="ablation: added loss without a part", xlabel="nats per token")


PANELS: dict[str, Callable[[Axes, dict], None]] = {
    "speedrun": speedrun,
    "ablation": ablation,
    "throughput": throughput,
    "generate-smollm2-135m": generation,
}


def _intervals(panel: Axes, names: list[str], estimates: list[tuple[float, float, float]]) -> None:
    # Each estimate is a value and its interval, against zero.
    for place, (value, low, high) in enumerate(estimates):
        panel.plot([low, high], [place, place], color="tab:blue", lw=2)
        panel.plot(value, place, "o", color="tab:blue")
    panel.axvline(0, color="gray", lw=0.8)
    panel.set_yticks(range(len(names)), names, fontsize=7)


def _bars(panel: Axes, names: list[str], ratios: list[list[float]]) -> None:
    # The bar is the first value of each list (the median); the error bar spans the list.
    values = [own[0] for own in ratios]
    errors = [[own[0] - min(own) for own in ratios], [max(own) - own[0] for own in ratios]]
    panel.barh(names, values, xerr=errors, color="tab:blue", alpha=0.7)
    panel.axvline(1, color="gray", lw=0.8)
    panel.tick_params(axis="y", labelsize=7)


def main() -> None:
    """Entry point of `python -m benchmarks.picture`."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    found: dict[str, Path] = {name: results_folder() / f"{name}.json" for name in PANELS}
    found = {name: path for name, path in found.items() if path.exists()}
    if not found:
        raise SystemExit(f"{results_folder()}: no recorded results; run `make bench`")
    rows = -(-len(found) // 2)
    figure = Figure(figsize=(13, 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flatten()
    for panel, (name, path) in zip(panels, found.items(), strict=False):
        PANELS[name](panel, json.loads(path.read_text()))
        panel.grid(alpha=0.3)
    for panel in panels[len(found) :]:
        panel.axis("off")
    figure.suptitle(results_folder().name)
    figure.savefig(results_folder() / "bench.png", dpi=100)
    print(f"written: {results_folder() / 'bench.png'}")


if __name__ == "__main__":
    main()
