"""Plot the training curves of one or more runs.

    python -m train.plot RUN [RUN …] [--out curves.png]

Prints a summary of each run and draws loss, validation, learning rate, gradient norm, speed and
memory against tokens.
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli.console import say, show
from cli.errors import UserError, run_command
from train.metrics import read_metrics

PANELS = {
    "loss": "training loss (nats per token)",
    "bits_per_byte": "validation (bits per byte)",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
    "memory_bytes": "peak memory (GiB)",
}


@dataclass
class Curves:
    """The metrics of one run."""

    name: str
    rows: list[dict]

    def points(self, key: str) -> tuple[list[float], list[float]]:
        """The points (tokens seen, `key`) of all rows that have the key."""
        tokens, xs, ys = 0, [], []
        for row in self.rows:
            tokens = row.get("tokens", tokens)
            if row.get(key) is not None:
                xs.append(tokens)
                ys.append(row[key] / 2**30 if key == "memory_bytes" else row[key])
        return xs, ys

    def summary(self) -> dict[str, str]:
        """The last step and the best score, as text."""
        steps = [row for row in self.rows if row.get("loss") is not None]
        scores = self.points("bits_per_byte")[1]
        return {
            "run": self.name,
            "steps": f"{steps[-1]['step']:,}",
            "tokens": f"{steps[-1]['tokens']:,}",
            "epochs": f"{steps[-1]['epoch']:.2f}",
            "training s": f"{steps[-1]['seconds']:,.0f}",
            "last loss": f"{steps[-1]['loss']:.4f}",
            "best bits/byte": f"{min(scores):.4f}" if scores else "–",
            "tokens/s (median)": f"{statistics.median(self.points('tokens_per_second')[1]):,.0f}",
        }


def load_curves(run: Path) -> Curves:
    """The metrics of a run. Raises UserError if it has no recorded training step."""
    rows = read_metrics(run)
    if not any(row.get("loss") is not None for row in rows):
        raise UserError(f"{run}: holds no metrics.jsonl with a training step")
    return Curves(run.name, rows)


def smooth(values: list[float], width: int) -> np.ndarray:
    """The moving average over the last `width` values."""
    sums, last = np.cumsum([0.0, *values]), np.arange(1, len(values) + 1)
    first = np.maximum(0, last - width)
    return (sums[last] - sums[first]) / (last - first)


def draw_figure(runs: list[Curves], path: Path) -> None:
    """Write the figure as a PNG. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plotting needs: pip install -e '.[compare]'") from None
    figure = Figure(figsize=(12, 9), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(3, 2).flat, PANELS.items(), strict=True):
        for i, run in enumerate(runs):
            color = f"C{i}"
            xs, ys = run.points(key)
            many = len(ys) > 50
            axes.plot(
                xs, ys, "" if many else ".-", color=color, alpha=0.3 if many else 1, label=None if many else run.name
            )
            if many:
                axes.plot(xs, smooth(ys, len(ys) // 50), color=color, label=run.name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("tokens", fontsize=8)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def plot_run(run: Path) -> None:
    """Draw the curves of a finished run into plots/loss.png, or print why that is not possible."""
    try:
        draw_figure([load_curves(run)], run / "plots" / "loss.png")
    except UserError as error:
        say(f"no plots/loss.png: {error}")


def main() -> None:
    """Entry point of `python -m train.plot`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    args = parser.parse_args()
    if args.out.suffix != ".png":
        raise UserError(f"--out {args.out}: must end in .png")
    runs = [load_curves(run) for run in args.runs]
    draw_figure(runs, args.out)
    for run in runs:
        show("  ".join(f"{key} {value}" for key, value in run.summary().items()))
    say(f"written: {args.out}")


if __name__ == "__main__":
    run_command(main)
